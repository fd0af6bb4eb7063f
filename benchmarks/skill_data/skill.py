"""What a skill is: how its rows are drawn, and when an answer to one is right."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from random import Random

from lorica.quickstart.phrasings import Split


@dataclass(frozen=True)
class Row:
    """`right` judges what was answered to `prompt`; `answer` is one that is right."""

    prompt: str
    answer: str
    right: Callable[[str], bool] = field(repr=False, compare=False)

    @classmethod
    def exact(cls, prompt: str, answer: str) -> "Row":
        """Right is the answer itself, but for white space around it."""
        return cls(prompt, answer, partial(_same, answer))

    def to_row(self) -> dict[str, str]:
        return {"prompt": self.prompt, "completion": self.answer}


@dataclass(frozen=True, kw_only=True)
class Skill:
    """says: what is asked, in a line; apart: what of the test never occurs in training; steps: of training."""

    name: str
    says: str
    apart: str
    measure: str
    steps: int
    rows: Callable[[Split, int, int], Iterator[Row]]
    """(split, count, seed): the same rows for the same seed, no prompt twice."""


def distinct(name: str, draw: Callable[[Split, Random], Row]) -> Callable[[Split, int, int], Iterator[Row]]:
    """Rows of a skill from what draws one."""
    return partial(_distinct, name, draw)


def _distinct(name: str, draw: Callable[[Split, Random], Row], split: Split, count: int, seed: int) -> Iterator[Row]:
    rng, seen = Random(f"{name}/{split}/{seed}"), set[str]()
    while len(seen) < count:
        row = draw(split, rng)
        if row.prompt not in seen:
            seen.add(row.prompt)
            yield row


def _same(answer: str, said: str) -> bool:
    return said.strip() == answer
