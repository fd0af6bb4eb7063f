"""What paired runs allow to say: means, bootstrap intervals, exact sign-flip p values, Holm's correction, equivalence.

A pair is the same seed in two arms: the same order of rows and the same test set.  With n pairs no sign-flip p value is
below 2^(1-n): 0.002 for ten.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

RESAMPLES = 20_000


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % bootstrap interval over seeds."""

    mean: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        return {"mean": round(self.mean, 5), "low": round(self.low, 5), "high": round(self.high, 5)}


def interval(values: Sequence[float], seed: int = 0) -> Interval:
    """Percentile bootstrap; of differences it is the paired bootstrap."""
    given = np.asarray(values, dtype=float)
    drawn = np.random.default_rng(seed).integers(0, len(given), (RESAMPLES, len(given)))
    low, high = np.quantile(given[drawn].mean(1), (0.025, 0.975))
    return Interval(float(given.mean()), float(low), float(high))


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided and exact: the share of all 2^n choices of signs whose mean is as far from zero as the one seen."""
    given = np.asarray(differences, dtype=float)
    signs = np.array(list(product((-1.0, 1.0), repeat=len(given))))
    means = np.abs(signs @ given)
    return float(np.mean(means >= np.abs(given.sum()) * (1 - 1e-12)))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p values of a family of tests.  Holm 1979."""
    adjusted, worst = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = worst
    return adjusted


def equivalent(differences: Sequence[float], margin: float) -> bool:
    """Whether the 90 % interval lies within the margin on both sides: two one-sided tests at 5 %."""
    given = np.asarray(differences, dtype=float)
    drawn = np.random.default_rng(0).integers(0, len(given), (RESAMPLES, len(given)))
    low, high = np.quantile(given[drawn].mean(1), (0.05, 0.95))
    return bool(-margin < low and high < margin)
