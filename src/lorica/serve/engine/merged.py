"""Merged: one adapter that is part of the base's weights.  Nothing is added to a pass, and nothing else is served."""

import time
from collections.abc import Callable
from pathlib import Path

from lorica.adapter import Bank
from lorica.adapter.mixes import BASE, Choice
from lorica.errors import AdapterError, UnknownAdapterError
from lorica.serve.engine.generation import Described, Generation
from lorica.serve.engine.lease import Lease


class Merged:
    """Takes the place of a Shelf before an engine whose model has the adapter `name` merged in."""

    bank: Bank | None = None

    def __init__(self, name: str, *, digest: str = "", method: str = "") -> None:
        self.name = name
        self._described = Described(
            name=name,
            generation=1,
            digest=digest,
            state="ready",
            rank=None,
            bytes=0,
            method=method,
            tier="device",
            in_flight=0,
            loaded_at=time.time(),
        )

    def load(self, name: str, folder: Path) -> Generation:
        raise self._refusal

    def replace(self, name: str, folder: Path) -> Generation:
        raise self._refusal

    def unload(self, name: str) -> None:
        raise self._refusal

    def list(self) -> tuple[Described, ...]:
        return (self._described,)

    def lease(self, choice: Choice) -> Lease:
        if choice != self.name:
            asked = "the base" if choice is None else f"{choice!r}"
            raise UnknownAdapterError(f"{asked} is not served: {self.name!r} is merged into the weights; ask for it")
        return Lease(self.name)

    def give_back(self, lease: Lease) -> None:
        return None

    def ready(self, lease: Lease) -> bool:
        return True

    def pin(self, lease: Lease) -> int | None:
        return BASE

    def unpin(self, lease: Lease) -> None:
        return None

    def problem(self, lease: Lease) -> str:
        return ""

    def resident(self) -> tuple[int, int]:
        return 1, 0

    def on_change(self, tell: Callable[[], None]) -> None:
        return None

    @property
    def _refusal(self) -> AdapterError:
        return AdapterError(
            f"{self.name!r} is merged into the weights; serve the base without merging to change adapters"
        )
