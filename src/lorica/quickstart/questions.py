"""Questions about small tables with their SQL, seeded and without end.

    table orchards: landlord text, capacity int, province text
    Pick out the landlord from whichever orchards have capacity figures over 30.
    -> select landlord from orchards where capacity > 30

Training and test use separate vocabularies (`words`) and separate grammars (`phrasings`).
"""

import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from lorica.quickstart.databases import build, rows_of, same_rows
from lorica.quickstart.intents import Intent, Kind, draw_intent, near_misses
from lorica.quickstart.phrasings import NUMBER_WORDS, Split, draw, mask_slots
from lorica.quickstart.schema import Schema, joined, single
from lorica.quickstart.words import vocabulary

KINDS: tuple[Kind, ...] = ("filter", "aggregate", "order", "group", "join")
_WEIGHTS: dict[Split, tuple[int, ...]] = {"train": (29, 24, 25, 14, 8), "test": (30, 24, 20, 14, 12)}
"""Training has more of what is learned last (order), and less of what is learned first and takes twice the tokens."""
_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question in words, what it asks, and the tables it is about; `misses` are queries that nearly answer it."""

    kind: Kind
    schema: Schema
    text: str
    sql: str
    masked: str
    misses: tuple[str, ...]

    @property
    def prompt(self) -> str:
        return f"{self.schema}\n{self.text}\n"

    def to_row(self) -> dict[str, str]:
        return {"prompt": self.prompt, "completion": self.sql}

    def database(self) -> sqlite3.Connection:
        """A fresh database in memory on which the gold query differs from its near misses."""
        return build(self.schema)


def generate(split: Split, count: int, seed: int) -> Iterator[Question]:
    """`count` questions of a split with distinct prompts, the same ones for the same seed."""
    rng = Random(f"{split}/{seed}")
    seen: set[str] = set()
    while len(seen) < count:
        question = _draw(split, rng)
        if question.prompt not in seen:
            seen.add(question.prompt)
            yield question


def masked(question: Question) -> str:
    """The question with every table, column, text value and number masked."""
    return question.masked


def _draw(split: Split, rng: Random) -> Question:
    intent = _distinct_intent(split, rng.choices(KINDS, _WEIGHTS[split])[0], rng)
    phrasing = draw(split, intent.shape, rng)
    return Question(
        kind=intent.kind,
        schema=intent.schema,
        text=worded(phrasing, intent, split, rng),
        sql=intent.sql,
        masked=mask_slots(phrasing, intent.shape),
        misses=tuple(near_misses(intent)),
    )


def _distinct_intent(split: Split, kind: Kind, rng: Random) -> Intent:
    """An intent whose result is not empty and differs from that of every near miss."""
    while True:
        schema = (joined if kind == "join" else single)(vocabulary(split), rng)
        intent = draw_intent(kind, schema, rng)
        if _is_distinct(intent):
            return intent


def _is_distinct(intent: Intent) -> bool:
    connection = build(intent.schema)
    try:
        expected = rows_of(connection, intent.sql)
        if not expected:
            return False
        return not any(same_rows(intent.sql, expected, rows_of(connection, wrong)) for wrong in near_misses(intent))
    finally:
        connection.close()


def worded(phrasing: str, intent: Intent, split: Split, rng: Random) -> str:
    in_words = rng.random() < 0.5
    slots = intent.slots(lambda n: NUMBER_WORDS[n] if in_words else str(n))
    text = _SLOT.sub(lambda match: slots[match[1]], phrasing)
    if split == "train" and rng.random() < 0.2:
        text = text.rstrip("?.")
    named_first = phrasing.startswith("{") or (split == "train" and rng.random() < 0.3)
    return text if named_first else text[0].upper() + text[1:]
