"""A generation: one adapter as it was when it was loaded, for ever.  Loading another under its name makes a new one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lorica.adapter import AdapterFile
from lorica.adapter.bank import Held

State = Literal["loading", "ready", "draining", "failed"]
Tier = Literal["disk", "host", "device"]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """digest   SHA-256 of its tensors and of what its config makes of them
    bytes    of its tensors as they answer
    """

    name: str
    number: int
    folder: Path
    digest: str
    method: str
    rank: int | None
    bytes: int

    @property
    def key(self) -> str:
        """What the Bank knows it by."""
        return f"{self.name}#{self.number}"


@dataclass(frozen=True, kw_only=True)
class Described:
    """An adapter as a list shows it.  `in_flight` requests wait or are answered with it; `problem` after "failed"."""

    name: str
    generation: int
    digest: str
    state: State
    rank: int | None
    bytes: int
    method: str
    tier: Tier
    in_flight: int
    loaded_at: float
    problem: str = ""


@dataclass(eq=False)
class Kept:
    """Where a generation stands now.  Whoever reads or writes it holds the lock of its shelf.

    file        its tensors in the host's memory, None where they are on disk or with the Bank alone
    moving      a thread is bringing it to the device, or taking it off
    in_flight   requests that hold it
    pins        of those, the ones being answered: it stays on the device for them
    fresh       brought for requests that have not been answered with it yet
    used        a number that grows with each use
    since       when it came to the device
    """

    generation: Generation
    file: AdapterFile | Held | None
    loaded_at: float
    state: State = "ready"
    tier: Tier = "host"
    moving: bool = False
    in_flight: int = 0
    pins: int = 0
    fresh: bool = False
    used: int = 0
    since: float = 0.0
    problem: str = ""

    @property
    def described(self) -> Described:
        g = self.generation
        return Described(
            name=g.name,
            generation=g.number,
            digest=g.digest,
            state=self.state,
            rank=g.rank,
            bytes=g.bytes,
            method=g.method,
            tier=self.tier,
            in_flight=self.in_flight,
            loaded_at=self.loaded_at,
            problem=self.problem,
        )
