"""How questions are worded: a wide grammar for training and a separate one that is held out.

Held-out phrasings share no sequence of four words with training or pretraining. Names are masked before the
comparison: a table is `<t>`, a column `<c>`, a text value `<v>`, a number `<n>`. The held-out grammar is enumerated,
its sequences are collected, and training draws again whenever a phrasing contains one of them.
"""

import re
from collections.abc import Collection, Iterator
from functools import cache
from random import Random
from typing import Literal

from lorica.quickstart.grammar import Grammar, Shape

Split = Literal["train", "test"]

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
OPERATORS = ("gt", "lt", "ge", "le", "eq", "text")
AGGREGATES = ("avg", "sum", "min", "max")
DIRECTIONS = ("desc", "asc")
WORDS_IN_A_SEQUENCE = 4
IN_THE_STANDARD_LIBRARY = frozenset(
    tuple(words.split())
    for words in (
        "no more than <n>",
        "at most <n> for",
        "<n> or more as",
        "less than <n> are",
        "from <n> upwards for",
    )
)
"""Sequences of the held-out grammar that pretraining meets in Python's own sources: questions avoid them too."""

TRAINING = Grammar.read("training.grammar")
LESSONS = TRAINING.extended(Grammar.read("lessons.grammar"))
HELD_OUT = Grammar.read("held_out.grammar")

_MASK = {"t": "<t>", "u": "<t>", "p": "<c>", "c": "<c>", "a": "<c>", "g": "<c>", "n": "<n>"}
_TOKEN = re.compile(r"<[tcvn]>|[a-z0-9]+(?:'[a-z]+)?|[<>=]+")
_SLOT = re.compile(r"\{([a-z])(\d?)\}")


def draw(split: Split, shape: Shape, rng: Random, training: Grammar = LESSONS) -> str:
    """One phrasing for `shape`, its names still slots; a training phrasing holds no held-out sequence."""
    while True:
        phrasing = HELD_OUT.draw(shape, rng) if split == "test" else _surrounded(training.draw(shape, rng), rng)
        kept_out = IN_THE_STANDARD_LIBRARY if split == "test" else held_out_sequences()
        if kept_out.isdisjoint(sequences(mask_slots(phrasing, shape))):
            return phrasing


def _surrounded(phrasing: str, rng: Random) -> str:
    """At times with an opening, or a closing before its last mark."""
    if rng.random() < 0.15:
        phrasing = f"{TRAINING.draw(Shape('opening'), rng)} {phrasing}"
    if rng.random() < 0.12:
        closing = TRAINING.draw(Shape("closing"), rng)
        phrasing = f"{phrasing[:-1]}{'' if closing.startswith(',') else ' '}{closing}{phrasing[-1]}"
    return phrasing


def mask_slots(phrasing: str, shape: Shape) -> str:
    """A phrasing with its slots as `<t>`, `<c>`, `<v>` and `<n>`."""

    def mask(match: re.Match[str]) -> str:
        slot, place = match.groups()
        if slot == "v":
            return "<v>" if shape.conditions[int(place)] == "text" else "<n>"
        return _MASK[slot]

    return _SLOT.sub(mask, phrasing)


def mask_names(text: str, tables: Collection[str], columns: Collection[str], values: Collection[str]) -> str:
    """Text with every table, column, value and number masked: what sequences are compared on."""
    marks = {**dict.fromkeys(values, "<v>"), **dict.fromkeys(columns, "<c>"), **dict.fromkeys(tables, "<t>")}
    marks |= dict.fromkeys(NUMBER_WORDS[2:], "<n>")
    names = sorted(marks, key=len, reverse=True)
    pattern = re.compile(r"\b(?:" + "|".join(map(re.escape, names)) + r")\b|\b\d+\b")
    return pattern.sub(lambda match: marks.get(match[0], "<n>"), text.lower())


def sequences(masked: str) -> set[tuple[str, ...]]:
    """Every sequence of four words of a masked text, without case and punctuation."""
    words = _TOKEN.findall(masked.lower())
    return set(zip(*(words[k:] for k in range(WORDS_IN_A_SEQUENCE)), strict=False))


@cache
def held_out_sequences() -> frozenset[tuple[str, ...]]:
    """Every sequence of four words of every held-out phrasing; what joins two conditions is the same around them."""
    return frozenset(sequence for phrasing in held_out_phrasings() for sequence in sequences(phrasing))


@cache
def held_out_phrasings() -> frozenset[str]:
    """Every held-out phrasing with one condition or none, masked; and every pair of conditions."""
    pairs = (Shape("pair", (), (one, two)) for one in OPERATORS for two in OPERATORS)
    every = (*shapes(), *pairs)
    return frozenset(mask_slots(phrasing, shape) for shape in every for phrasing in HELD_OUT.all(shape))


def shapes() -> Iterator[Shape]:
    """Every shape a question with at most one condition can have."""
    for some in [(one,) for one in OPERATORS]:
        yield from (Shape(start, (), some) for start in ("filter.all", "filter.col"))
        yield Shape("count", ("some",), some)
        yield from (Shape("aggregate", ("some", function), some) for function in AGGREGATES)
    yield Shape("count", ("none",))
    yield from (Shape("aggregate", ("none", function)) for function in AGGREGATES)
    yield from (Shape("join", (), (one,)) for one in OPERATORS)
    yield Shape("group.count")
    yield from (Shape("group.agg", (function,)) for function in AGGREGATES)
    for direction in DIRECTIONS:
        yield from (Shape(f"order.{many}.{what}", (direction,)) for many in ("one", "many") for what in ("all", "col"))


def contains_held_out(masked: str) -> bool:
    """Whether a masked text holds a sequence of a held-out phrasing."""
    return not held_out_sequences().isdisjoint(sequences(masked))
