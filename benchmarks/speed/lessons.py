"""The documents that all sides learn from: token ids drawn from a fixed seed, the frequent ones often (Zipf).

`rows` are documents of token ids; `steps` are the rows of each step, in the order in which `lorica.fit` takes them, so
that every side learns the same rows at the same step.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SEED = 0
STEPS = 400
"""More than any side is asked for."""


@dataclass(frozen=True)
class Lessons:
    rows: list[list[int]]
    steps: list[list[int]]
    rows_per_step: int | None = None
    tokens_per_step: int | None = None

    @property
    def probe(self) -> list[list[int]]:
        """What a side that takes its rows in another order is compared on, before it learns."""
        return self.rows[:4]

    @property
    def name(self) -> str:
        size = f"{self.rows_per_step} rows" if self.rows_per_step else f"{self.tokens_per_step} tokens"
        return f"{len(self.rows)}-{sum(map(len, self.rows))}-{max(map(max, self.rows))}-{size}".replace(" ", "")

    def write(self, place: Path) -> Path:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(vars(self)))
        return place

    @classmethod
    def read(cls, place: str) -> "Lessons":
        return cls(**json.loads(Path(place).read_text()))

    def batch(self, step: int) -> list[list[int]]:
        """The documents of a step, from 0."""
        return [self.rows[index] for index in self.steps[step]]


def equal(length: int, rows_per_step: int, vocabulary: int, batches: int = 16) -> Lessons:
    """Documents of one length."""
    return of_lengths([length] * (batches * rows_per_step), vocabulary, rows_per_step=rows_per_step)


def mixed(count: int, vocabulary: int, *, mean: float, longest: int, tokens_per_step: int) -> Lessons:
    """Documents of log-normal length (sigma 0.8 of the logarithm, as texts from the web have it)."""
    sigma = 0.8
    draw = np.random.default_rng(SEED)
    drawn = draw.lognormal(np.log(mean) - sigma**2 / 2, sigma, count).round().astype(int)
    return of_lengths(np.clip(drawn, 4, longest).tolist(), vocabulary, tokens_per_step=tokens_per_step)


def of_lengths(
    lengths: Sequence[int], vocabulary: int, *, rows_per_step: int | None = None, tokens_per_step: int | None = None
) -> Lessons:
    from lorica.data import steps

    draw = np.random.default_rng(SEED)
    share = 1 / np.arange(1, vocabulary + 1)
    tokens = draw.choice(vocabulary, sum(lengths), p=share / share.sum())
    ends = np.cumsum(lengths).tolist()
    rows = [tokens[end - length : end].tolist() for length, end in zip(lengths, ends, strict=True)]
    order = steps(lengths, rows_per_step=rows_per_step, tokens_per_step=tokens_per_step, steps=STEPS, seed=SEED)
    return Lessons(rows, [list(order[step]) for step in range(STEPS)], rows_per_step, tokens_per_step)
