"""What is run, in this order, each run once and kept in a ledger.

length      how long runs are: the shortest whose validation score, each arm at the best of three rates and averaged
            over full fine-tuning and LoRA r=8, lies within half a point of the best; then the same for every arm
tune        each arm's learning rate on validation, a seed of its own, a half-decade grid of equal size, the best inside
test        ten fresh seeds an arm at that rate, on the test part, which nothing before has read
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

from benchmarks.evidence.arms import FULL, LORA, Arm
from benchmarks.evidence.ledger import Ledger
from benchmarks.evidence.track import Part, Track
from benchmarks.evidence.tuning import POINTS, Tuned, grid_point, tune
from lorica.errors import DivergedError

GOOD_ENOUGH = 0.005
RATES_FOR_LENGTH = (-1, 0, 1)
TUNING, TESTING = range(1), range(100, 110)


class NotRun(Exception):
    """A run that `so far` would need is not in the ledger."""


@dataclass
class Protocol:
    """`told` hears a line for each run made; so_far: nothing is run, and what is missing is left out."""

    track: Track
    ledger: Ledger
    told: Callable[[str], None] = print
    so_far: bool = False
    tuning: range = TUNING
    testing: range = TESTING
    made: list[float] = field(default_factory=list)

    def score(self, arm: Arm, rate: float, seed: int, length: int, part: Part = "validation") -> float:
        key = f"{part}/{length}/{arm.name}/{rate:.3g}/{seed}"
        if self.so_far and key not in self.ledger.done:
            raise NotRun(key)
        new = key not in self.ledger.done
        entry = self.ledger.get(key, lambda: self._run(arm, rate, seed, length, part))
        if new:
            self.made.append(entry["seconds"])
            self._tell(key, entry)
        return entry["score"]

    def _run(self, arm: Arm, rate: float, seed: int, length: int, part: Part) -> dict[str, Any]:
        began = time.perf_counter()
        facts = {"part": part, "length": length, "arm": arm.name, "rate": rate, "seed": seed}
        try:
            found = vars(self.track.run(arm, rate=rate, seed=seed, length=length, part=part))
        except DivergedError as error:  # a rate that is too high is no reason to stop the search
            found = {"score": 0.0, "diverged": str(error)}
        return {**facts, **found, "seconds": round(time.perf_counter() - began, 2)}

    def _tell(self, key: str, entry: dict[str, Any]) -> None:
        left = max(0, self.planned() - len(self.ledger.done))
        hours, minutes = divmod(round(left * fmean(self.made) / 60), 60)
        count = f"{len(self.ledger.done)}/{max(self.planned(), len(self.ledger.done))}"
        at = f"{key}: {entry['score']:.4f} in {entry['seconds']:.0f} s"
        self.told(f"{self.track.name} {count}  {at}; about {hours} h {minutes:02d} min left")

    def planned(self) -> int:
        """Runs in all where no window of rates has to move, and no run of one stage serves the next."""
        trained = sum(arm.method is not None for arm in self.track.arms)
        several = len(self.track.lengths) > 1
        lengths = 2 * len(RATES_FOR_LENGTH) * len(self.track.lengths) if several else 0
        shared = 2 * len(RATES_FOR_LENGTH) if several else 0
        untrained = len(self.track.arms) - trained
        return lengths - shared + trained * (POINTS * len(self.tuning) + len(self.testing)) + untrained

    def length(self) -> tuple[int, dict[int, float]]:
        """The length kept, and the validation score of each."""
        if len(self.track.lengths) == 1:
            return self.track.lengths[0], {}
        scores = {length: self._of_length(length) for length in self.track.lengths}
        return next(n for n in self.track.lengths if scores[n] >= max(scores.values()) - GOOD_ENOUGH), scores

    def _of_length(self, length: int) -> float:
        bests = []
        for arm in map(self.track.arm, (FULL, LORA)):
            rates = [grid_point(arm.rate, index) for index in RATES_FOR_LENGTH]
            bests.append(max(self.score(arm, rate, self.tuning[0], length) for rate in rates))
        return fmean(bests)

    def tuned(self, arm: Arm, length: int) -> Tuned:
        return tune(arm.rate, self.tuning, lambda rate, seed: self.score(arm, rate, seed, length))

    def tested(self, arm: Arm, rate: float, length: int) -> dict[int, float]:
        """Test scores by seed."""
        scores = {}
        for seed in self.testing if arm.method is not None else self.testing[:1]:
            try:
                scores[seed] = self.score(arm, rate, seed, length, "test")
            except NotRun:
                continue
        return scores

    def found(self) -> dict[str, Any]:
        """All of it: the length, each arm's rates, and its test scores; arms that are not there yet are left out."""
        try:
            length, scores = self.length()
        except NotRun:
            return {"length": None, "lengths": {}, "arms": {}}
        rates = {arm.name: tuned for arm in self.track.arms if (tuned := self._tuned(arm, length)) is not None}
        arms = {}
        for arm in self.track.arms:
            if arm.method is None or arm.name in rates:
                tuned = rates.get(arm.name)
                tests = self.tested(arm, tuned.best if tuned else 0.0, length)
                arms[arm.name] = self._of_arm(arm, tuned, tests, length)
        return {"length": length, "lengths": scores, "arms": {name: arm for name, arm in arms.items() if arm["test"]}}

    def _tuned(self, arm: Arm, length: int) -> Tuned | None:
        try:
            return None if arm.method is None else self.tuned(arm, length)
        except NotRun:
            return None

    def _of_arm(self, arm: Arm, tuned: Tuned | None, tests: dict[int, float], length: int) -> dict[str, Any]:
        entries = [e for e in self.ledger.done.values() if e["arm"] == arm.name and e["length"] == length]
        counted = next((e for e in entries if "trained" in e), {"trained": 0, "total": 1})
        return {
            "told": arm.told,
            "trained": counted["trained"],
            "percent": round(100 * counted["trained"] / (counted["total"] - counted["trained"]), 3),
            "seconds": round(median(e["seconds"] for e in entries if e["part"] == "test"), 1) if tests else None,
            "tuning": tuned.to_dict() if tuned else None,
            "test": tests,
        }
