"""The micro-batch of a run that takes the most memory, found before the first step."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from lorica.data import Schedule

Parts = Sequence[Sequence[int]]
LOOKED_AT = 8
"""Steps of the first pass over the data that are cut to see: those of the most tokens, and those of the longest row."""


def heaviest(
    schedule: Schedule, parts: Callable[[int], Parts], size: Callable[[Sequence[int]], int]
) -> tuple[int, tuple[int, ...]]:
    """A step, from 1, and the rows of its micro-batch for which `size` is largest; `parts` cuts a step."""
    steps = _likely(schedule)
    found = max(((size(part), -step, tuple(part)) for step in steps for part in parts(step)), key=lambda each: each[:2])
    return -found[1], found[2]


def _likely(schedule: Schedule) -> list[int]:
    first = schedule.epoch(0)
    lengths: npt.NDArray[np.int64] = schedule.lengths[first.order]
    spans = list(pairwise(first.bounds.tolist()))[: len(schedule)]
    tokens = np.array([int(lengths[start:end].sum()) for start, end in spans])
    longest = np.array([int(lengths[start:end].max()) for start, end in spans])
    chosen = {int(place) for order in (tokens, longest) for place in np.argsort(-order, kind="stable")[:LOOKED_AT]}
    return [place + 1 for place in sorted(chosen)]
