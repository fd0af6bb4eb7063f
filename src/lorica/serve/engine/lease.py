"""Lease: the generations that one request is answered with, held from its submission to its end."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from lorica.adapter import Bank
from lorica.adapter.mixes import Choice
from lorica.serve.engine.generation import Kept


@dataclass(frozen=True, eq=False)
class Lease:
    """name     as people write it: "" for the base, "a+b" for a blend
    choice   as the Bank is asked: by generation
    parts    each generation and its weight
    """

    name: str = ""
    choice: Choice = None
    parts: tuple[tuple[Kept, float], ...] = ()

    @property
    def adapters(self) -> Sequence[tuple[str, str, float]]:
        """(generation, digest, weight) of each, for the key of a prefix."""
        return [(kept.generation.key, kept.generation.digest, weight) for kept, weight in self.parts]


class Adapters(Protocol):
    """What an engine asks of the place where adapters are kept.  Every call is short, from any thread."""

    @property
    def bank(self) -> Bank | None:
        """What chooses among them in a pass; None where the model answers in one way alone."""
        ...

    def lease(self, choice: Choice) -> Lease:
        """UnknownAdapterError for a name that is not served, AdapterError for one that failed."""
        ...

    def give_back(self, lease: Lease) -> None:
        """The request has ended."""
        ...

    def ready(self, lease: Lease) -> bool:
        """Whether it could be answered now.  Where it could not, its adapters are being brought."""
        ...

    def pin(self, lease: Lease) -> int | None:
        """Its adapters stay until `unpin`.  The Bank's number for them; None where they are not ready after all."""
        ...

    def unpin(self, lease: Lease) -> None: ...

    def problem(self, lease: Lease) -> str:
        """Why it can never be answered, or nothing."""
        ...

    def resident(self) -> tuple[int, int]:
        """Adapters on the device, and their bytes."""
        ...

    def on_change(self, tell: Callable[[], None]) -> None:
        """`tell` is called when something has become ready, or failed."""
        ...
