"""The order of rows as a pure function, so that every step is known before the first.

    order(seed, epoch) = argsort of Philox4x64(key = (seed, epoch))        Salmon et al., SC 2011
    step i             = consecutive rows of that order: `rows_per_step` of them, or as many as `tokens_per_step` holds

The raw words of the generator are sorted, because numpy keeps a bit generator's raw stream the same for ever and
`Generator.permutation` only within a version (NEP 19).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from lorica.errors import DataError

Lengths = Sequence[int] | npt.NDArray[np.integer]
_WORD = (1 << 64) - 1
OVERHEAD = 128
"""Tokens that take as long as the small calls of one more forward and backward pass (all-MiniLM-L6-v2 on two cores)."""


def epoch_order(lengths: Lengths, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """A permutation (rows,) of the row indices; equal arguments give equal orders on every machine."""
    key = np.array([seed & _WORD, epoch & _WORD], dtype=np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(len(lengths)), kind="stable")


@dataclass(frozen=True)
class EpochPlan:
    """One pass over the rows: step `j` takes `order[bounds[j]:bounds[j + 1]]`."""

    order: npt.NDArray[np.int64]
    bounds: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def step(self, j: int) -> tuple[int, ...]:
        return tuple(self.order[self.bounds[j] : self.bounds[j + 1]].tolist())


@dataclass(frozen=True, eq=False)
class Schedule:
    """`schedule[i]` holds the example indices of optimiser step `i`; `len(schedule)` is the number of steps."""

    lengths: npt.NDArray[np.int64]
    seed: int
    rows_per_step: int | None
    tokens_per_step: int | None
    epochs: float | None
    max_steps: int | None
    _recent: dict[int, EpochPlan] = field(default_factory=dict, repr=False)
    _ends: list[int] = field(default_factory=list, repr=False)

    def __len__(self) -> int:
        return self.total

    @cached_property
    def total(self) -> int:
        if self.max_steps is not None:
            return self.max_steps
        whole, part = divmod(self.epochs or 0.0, 1)
        rest = math.ceil(part * len(self.epoch(int(whole))) - 1e-9) if part else 0
        return self._end_of(int(whole) - 1) + rest

    def __getitem__(self, i: int) -> tuple[int, ...]:
        epoch, j = self.place(i)
        return self.epoch(epoch).step(j)

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return (self[i] for i in range(len(self)))

    def epoch_of(self, i: int) -> float:
        """Passes over the data that are done when step `i` is: a whole number after the last step of an epoch."""
        epoch, j = self.place(i)
        return epoch + int(self.epoch(epoch).bounds[j + 1]) / len(self.lengths)

    def place(self, i: int) -> tuple[int, int]:
        """The epoch of step `i`, and its number within that epoch."""
        total = len(self)
        if not -total <= i < total:
            raise IndexError(f"step {i} of {total}")
        i %= total
        while not self._ends or self._ends[-1] <= i:
            self._end_of(len(self._ends))
        epoch = int(np.searchsorted(self._ends, i, side="right"))
        return epoch, i - self._end_of(epoch - 1)

    def epoch(self, epoch: int) -> EpochPlan:
        """The plan of one epoch; the last two are kept, since steps are read in order."""
        if epoch not in self._recent:
            while len(self._recent) > 1:
                self._recent.pop(next(iter(self._recent)))
            order = epoch_order(self.lengths, self.seed, epoch)
            self._recent[epoch] = EpochPlan(order, self._bounds(order))
        return self._recent[epoch]

    def _bounds(self, order: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        if self.rows_per_step is not None:
            return np.append(np.arange(0, len(order), self.rows_per_step), len(order))
        return greedy_bounds(self.lengths[order], self.tokens_per_step or 1)

    def _end_of(self, epoch: int) -> int:
        """Steps in the epochs up to and including this one."""
        while len(self._ends) <= epoch:
            before = self._ends[-1] if self._ends else 0
            self._ends.append(before + self._steps_in(len(self._ends)))
        return self._ends[epoch] if epoch >= 0 else 0

    def _steps_in(self, epoch: int) -> int:
        if self.rows_per_step is not None:
            return -(-len(self.lengths) // self.rows_per_step)
        return len(self.epoch(epoch))


def greedy_bounds(lengths: npt.NDArray[np.int64], ceiling: int) -> npt.NDArray[np.int64]:
    """Cut a sequence where the next item would not fit; an item larger than the ceiling stands alone."""
    ends = np.cumsum(lengths)
    bounds = [0]
    while bounds[-1] < len(lengths):
        done = int(ends[bounds[-1] - 1]) if bounds[-1] else 0
        bounds.append(max(bounds[-1] + 1, int(np.searchsorted(ends, done + ceiling, side="right"))))
    return np.array(bounds, dtype=np.int64)


def steps(
    lengths: Lengths,
    *,
    rows_per_step: int | None = None,
    tokens_per_step: int | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    seed: int,
) -> Schedule:
    """The plan of a run over examples of these lengths (tokens).

    Give `rows_per_step` (the last step of an epoch may have fewer) or `tokens_per_step` (a ceiling on real tokens,
    filled in order), and `epochs` (a fraction is rounded up to a whole step) or `steps`. Raises `DataError`.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    problems = _problems(sizes, rows_per_step, tokens_per_step, epochs, steps)
    if problems:
        raise DataError.of(problems)
    return Schedule(sizes, seed, rows_per_step, tokens_per_step, epochs, steps)


def _problems(
    sizes: npt.NDArray[np.int64], rows: int | None, tokens: int | None, epochs: float | None, count: int | None
) -> list[str]:
    problems = []
    if not len(sizes):
        problems.append("no rows to train on: see the data report for what was dropped, and why")
    if (rows is None) == (tokens is None):
        problems.append("the size of a step: give one of rows_per_step and tokens_per_step")
    if (epochs is None) == (count is None):
        problems.append("the length of the run: give one of epochs and steps")
    for name, value in {"rows_per_step": rows, "tokens_per_step": tokens, "epochs": epochs, "steps": count}.items():
        if value is not None and not (value > 0 and math.isfinite(value)):
            problems.append(f"{name}: {value} is not above zero")
    if tokens is not None and len(sizes) and int(sizes.max()) > tokens:
        longest = int(sizes.max())
        problems.append(f"tokens_per_step: {tokens} is less than the longest row ({longest}); raise it to {longest}")
    return problems


def micro_batches(
    indices: Sequence[int], lengths: Lengths, micro_batch_tokens: int | None
) -> tuple[tuple[int, ...], ...]:
    """One step cut, in order, into parts of at most `micro_batch_tokens`; a longer row stands alone. None: one part."""
    if not len(indices):
        return ()
    if micro_batch_tokens is None:
        return (tuple(int(i) for i in indices),)
    sizes = np.asarray([lengths[i] for i in indices], dtype=np.int64)
    bounds = greedy_bounds(sizes, micro_batch_tokens).tolist()
    return tuple(tuple(int(i) for i in indices[start:end]) for start, end in pairwise(bounds))


def rectangles(
    indices: Sequence[int], lengths: Lengths, micro_batch_tokens: int | None, *, overhead: int = OVERHEAD
) -> tuple[tuple[int, ...], ...]:
    """One step cut into micro-batches of rows of nearly one length, for models that pad rows to the longest of them.

    The fewest tokens in all, padding included, one more micro-batch counting as `overhead` tokens; each holds at most
    `micro_batch_tokens`, a longer row alone.
    """
    if not len(indices):
        return ()
    order = sorted((int(i) for i in indices), key=lambda i: lengths[i])
    least = np.zeros(len(order) + 1, np.int64)
    begun = np.zeros(len(order) + 1, np.int64)
    for end in range(1, len(order) + 1):
        width = int(lengths[order[end - 1]])
        most = end if micro_batch_tokens is None else max(1, micro_batch_tokens // max(width, 1))
        starts = np.arange(max(0, end - most), end)
        costs = least[starts] + overhead + (end - starts) * width
        begun[end] = starts[costs.argmin()]
        least[end] = costs.min()
    bounds = [len(order)]
    while bounds[-1]:
        bounds.append(int(begun[bounds[-1]]))
    return tuple(tuple(order[start:end]) for start, end in pairwise(reversed(bounds)))
