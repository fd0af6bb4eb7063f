"""A learning rate for each arm: the best of a half-decade grid on validation data, and never at its edge.

Every arm has the same number of points.  Where the best is the first or the last of them, the window moves one point on
to that side, until the best lies inside.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

POINTS = 5
STEP = 10**0.5
MOST_MOVES = 4


@dataclass(frozen=True)
class Tuned:
    """Validation scores by learning rate, over the whole window and what was left behind; `best` is inside it."""

    window: tuple[float, ...]
    scores: dict[float, float]
    best: float

    @property
    def inside(self) -> bool:
        return self.best not in (self.window[0], self.window[-1])

    def to_dict(self) -> dict[str, object]:
        scores = {f"{rate:.2e}": round(score, 5) for rate, score in sorted(self.scores.items())}
        return {"best": self.best, "inside": self.inside, "window": list(self.window), "validation": scores}


def tune(middle: float, seeds: range, run: Callable[[float, int], float]) -> Tuned:
    """`run(learning_rate, seed)` is the validation score of one run, the higher the better."""
    scores: dict[float, float] = {}
    first = -(POINTS // 2)
    for _ in range(MOST_MOVES + 1):
        window = tuple(grid_point(middle, index) for index in range(first, first + POINTS))
        for rate in window:
            if rate not in scores:
                scores[rate] = fmean(run(rate, seed) for seed in seeds)
        tuned = Tuned(window, scores, max(window, key=lambda rate: scores[rate]))
        if tuned.inside:
            return tuned
        first += 1 if tuned.best == window[-1] else -1
    return tuned


def grid_point(middle: float, index: int) -> float:
    return float(f"{middle * STEP**index:.3g}")
