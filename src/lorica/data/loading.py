"""Files or rows to a data set: read, split, understand, encode, and account for every row."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

from lorica.data.config import DataConfig, HoldOut
from lorica.data.dataset import Dataset
from lorica.data.faces import Renderer, Tokenizer
from lorica.data.lessons import Lessons
from lorica.data.problems import Problems
from lorica.data.reading import read
from lorica.data.rows import Row
from lorica.data.sources import HubSource, SourceFile, resolve
from lorica.data.split import split
from lorica.data.teaching import Teacher
from lorica.errors import DataError


def load(
    config: DataConfig, tokenizer: Tokenizer, renderer: Renderer | None = None, *, limit: int
) -> tuple[Dataset, Dataset | None]:
    """The training data and, where the config asks for one, the evaluation data.

    `renderer` is the tokenizer's chat template (None: it has none, and the stated default is used for chat rows);
    `limit` is the longest row the base allows, in tokens. Raises `DataError` with every problem found.
    """
    return taught(config, Lessons(config, tokenizer, renderer, limit))


def taught(config: DataConfig, teacher: Teacher) -> tuple[Dataset, Dataset | None]:
    """The data sets of a config, each row understood by `teacher`.  Raises `DataError` with every problem found."""
    train, held = rows_of(config)
    learned = teacher.dataset(train, "data.train", config.train)
    return learned, None if held is None else teacher.dataset(held, "data.eval", config.eval)


def rows_of(config: DataConfig) -> tuple[list[Row], list[Row] | None]:
    """The rows that are trained on and those that are held out, as their files give them."""
    problems = Problems()
    train_files = _files([config.train] if isinstance(config.train, str) else config.train)
    train = _rows(train_files, problems)
    if isinstance(config.eval, HoldOut):
        problems.report()
        return split(train, config.eval)
    held = _rows(_apart(_files([config.eval]), train_files), problems) if config.eval else None
    problems.report()
    return train, held


def from_rows(
    rows: Iterable[Mapping[str, Any]],
    tokenizer: Tokenizer,
    renderer: Renderer | None = None,
    *,
    config: DataConfig | None = None,
    limit: int,
) -> Dataset:
    """A data set from rows in memory; `config.train` and `config.eval` are not read. Raises `DataError`."""
    return Lessons(config or DataConfig(train="rows"), tokenizer, renderer, limit).dataset(in_memory(rows), "rows")


def in_memory(rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Rows as `rows[0]`, `rows[1]` ...  Raises `DataError` for what is no mapping."""
    return [_in_memory(fields, number) for number, fields in enumerate(rows)]


def _in_memory(fields: object, number: int) -> Row:
    if not isinstance(fields, Mapping):
        raise DataError(f"rows[{number}]: a row is a mapping of fields, not {type(fields).__name__}")
    return Row(fields, f"rows[{number}]", "rows")


def _files(sources: Iterable[str]) -> list[SourceFile | HubSource]:
    files = [file for source in sources for file in resolve(source)]
    seen: set[object] = set()
    for file in files:
        if _place(file) in seen:
            raise DataError(f"{file.name}: named twice; its rows would count double")
        seen.add(_place(file))
    return files


def _apart(held: list[SourceFile | HubSource], train: list[SourceFile | HubSource]) -> list[SourceFile | HubSource]:
    both = {_place(file) for file in train} & {_place(file) for file in held}
    shared = [file.name for file in held if _place(file) in both]
    if shared:
        raise DataError(f"data.eval: {shared[0]} is trained on as well; name another file, or hold out a share")
    return held


def _place(file: SourceFile | HubSource) -> object:
    return os.path.realpath(file.path) if isinstance(file, SourceFile) else file


def _rows(files: Iterable[SourceFile | HubSource], problems: Problems) -> list[Row]:
    return [row for file in files for row in read(file, problems)]
