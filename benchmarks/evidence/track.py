"""The contract of a track: a base, rows in three parts, arms, and one run of an arm from a seed to a score."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from benchmarks.evidence.arms import Arm
from lorica.train import Run

Part = Literal["validation", "test"]


@dataclass(frozen=True)
class Outcome:
    """score: in [0, 1], the higher the better.  trained: numbers that are trained.  total: these and the base's."""

    score: float
    trained: int
    total: int


class Track:
    """lengths: how long runs may be, in `unit`; the shortest that is good enough is kept for all arms.

    A base is loaded once; each run attaches its method and detaches it again.
    """

    name: ClassVar[str]
    metric: ClassVar[str]
    unit: ClassVar[str]
    arms: tuple[Arm, ...]
    lengths: tuple[int, ...]

    def facts(self) -> Mapping[str, Any]:
        """What it was measured on, by name; rows are told by their digest, which names the ledger too."""
        raise NotImplementedError

    def run(self, arm: Arm, *, rate: float, seed: int, length: int, part: Part) -> Outcome:
        raise NotImplementedError

    @staticmethod
    def whole(run: Run) -> None:
        """Ctrl-C ends a run early and keeps what it has, whose score would be another's.  KeyboardInterrupt then."""
        if run.status == "interrupted":
            raise KeyboardInterrupt

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)
