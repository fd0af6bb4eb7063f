"""Rows to a data set, one at a time, for tasks whose rows are not text to be written: read = used + dropped.

read(row, number) -> the example, or why the row is dropped;  DataError where it cannot be understood
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from lorica.data.dataset import Dataset
from lorica.data.example import Dropped, Example
from lorica.data.problems import Problems
from lorica.data.rows import Row
from lorica.errors import DataError

Read = Callable[[Row, int], Example | str]


class Teacher(Protocol):
    """What turns rows into examples; `what` and `source` name the rows in errors."""

    def dataset(self, rows: Sequence[Row], what: str, source: object = "") -> Dataset: ...


@dataclass(frozen=True)
class RowByRow:
    """`shape` is what the rows are called in reports."""

    shape: str
    read: Read

    def dataset(self, rows: Sequence[Row], what: str, source: object = "") -> Dataset:
        """Every row used or dropped. Raises `DataError` with every row that cannot be understood."""
        if not rows:
            raise DataError(f"{what}: there are no rows{f' in {source}' if source else ''}")
        problems, examples, dropped = Problems(), list[Example](), list[Dropped]()
        for number, row in enumerate(rows):
            found = self._understood(row, number, problems)
            if isinstance(found, str):
                dropped.append(Dropped(number, row.origin, found))
            else:
                examples.append(found)
        problems.report()
        return Dataset(tuple(examples), tuple(dropped), len(rows), self.shape)

    def _understood(self, row: Row, number: int, problems: Problems) -> Example | str:
        if row.refused:
            return row.refused
        try:
            return self.read(row, number)
        except DataError as problem:
            problems.add(row.origin, problem)
            return "not understood"
