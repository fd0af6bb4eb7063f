"""Tables of a question: their columns, their line in the prompt, and the rows of a small database.

A schema line is `table harbors: landlord text, depth int, parish text`. Every name has a space before it, there, in the
question and in the SQL alike, so that byte-level BPE cuts it into the same tokens at all three places.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Literal

from lorica.quickstart.words import Vocabulary

Cell = int | str
ROWS = 12
_RANGES = ((2, 40), (2, 99), (10, 99), (10, 99), (100, 999))
_YEARS = (1950, 2020)


@dataclass(frozen=True)
class Column:
    name: str
    type: Literal["int", "text"]


@dataclass(frozen=True)
class Table:
    name: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __str__(self) -> str:
        return f"table {self.name}: " + ", ".join(f"{column.name} {column.type}" for column in self.columns)

    def of_type(self, type_: str) -> list[Column]:
        """Columns of a type, without the key that joins two tables."""
        return [column for column in self.columns if column.type == type_ and not column.name.endswith("_id")]

    def values(self, column: Column) -> list[Cell]:
        place = self.columns.index(column)
        return [row[place] for row in self.rows]


@dataclass(frozen=True)
class Schema:
    """One table, or two whose shared key column is `key`."""

    tables: tuple[Table, ...]
    key: str = ""

    def __str__(self) -> str:
        return "\n".join(map(str, self.tables))


def single(vocabulary: Vocabulary, rng: Random) -> Schema:
    """One table with at least one column of each type and two of one."""
    name = vocabulary.table(rng)
    columns = _columns(vocabulary, rng, rng.choice(((1, 2), (2, 1), (2, 1), (2, 2))), {name})
    return Schema((_filled(name, columns, vocabulary, rng, {}),))


def joined(vocabulary: Vocabulary, rng: Random) -> Schema:
    """Two tables: many rows of the first belong to one row of the second."""
    first, second = _distinct(2, lambda: vocabulary.table(rng), set())
    key = Column(f"{singular(second)}_id", "int")
    taken = {first, second, key.name}
    child = _columns(vocabulary, rng, rng.choice(((1, 1), (0, 2), (1, 1))), taken)
    parent = _columns(vocabulary, rng, rng.choice(((1, 1), (1, 1), (0, 2), (2, 0))), taken)
    ids = list(range(1, 7))
    many: list[Cell] = [rng.choice(ids) for _ in range(ROWS)]
    return Schema(
        (
            _filled(first, [*child, key], vocabulary, rng, {key: many}),
            _filled(second, [key, *parent], vocabulary, rng, {key: list[Cell](ids)}),
        ),
        key=key.name,
    )


def singular(table: str) -> str:
    for ending, stem in (("ies", "y"), ("oes", "o"), ("xes", "x"), ("ches", "ch"), ("shes", "sh"), ("sses", "ss")):
        if table.endswith(ending):
            return table.removesuffix(ending) + stem
    return table.removesuffix("s")


def _columns(vocabulary: Vocabulary, rng: Random, counts: tuple[int, int], taken: set[str]) -> list[Column]:
    numbers, texts = counts
    names = _distinct(numbers, lambda: vocabulary.number_column(rng), taken)
    columns = [Column(name, "int") for name in names]
    columns += [Column(name, "text") for name in _distinct(texts, lambda: vocabulary.text_column(rng), taken)]
    rng.shuffle(columns)
    return columns


def _distinct(count: int, draw: Callable[[], str], taken: set[str]) -> list[str]:
    """`count` names of which none shares a word with another name of the schema, so that a word means one thing."""
    names: list[str] = []
    while len(names) < count:
        name = draw()
        words = _stems(name)
        if not any(words & _stems(other) for other in taken):
            names.append(name)
            taken.add(name)
    return names


def _stems(name: str) -> set[str]:
    return {singular(word) for word in name.split("_")}


def _filled(
    name: str, columns: Iterable[Column], vocabulary: Vocabulary, rng: Random, given: dict[Column, list[Cell]]
) -> Table:
    columns = tuple(columns)
    rows = len(next(iter(given.values()))) if given else ROWS
    filled = [given.get(column) or _cells(column, vocabulary, rng, rows) for column in columns]
    return Table(name, columns, tuple(zip(*filled, strict=True)))


def _cells(column: Column, vocabulary: Vocabulary, rng: Random, rows: int) -> list[Cell]:
    if column.type == "text":
        pool = _distinct(4, lambda: vocabulary.value(rng), set())
        return [rng.choice(pool) for _ in range(rows)]
    low, high = _YEARS if column.name.endswith("_year") else rng.choice(_RANGES)
    return list[Cell](rng.sample(range(low, high), rows))
