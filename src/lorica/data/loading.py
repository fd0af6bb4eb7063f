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
from lorica.errors import DataError


def load(
    config: DataConfig, tokenizer: Tokenizer, renderer: Renderer | None = None, *, limit: int
) -> tuple[Dataset, Dataset | None]:
    """The training data and, where the config asks for one, the evaluation data.

    `renderer` is the tokenizer's chat template (None: it has none, and the stated default is used for chat rows);
    `limit` is the longest row the base allows, in tokens. Raises `DataError` with every problem found.
    """
    lessons = Lessons(config, tokenizer, renderer, limit)
    problems = Problems()
    train_files = _files([config.train] if isinstance(config.train, str) else config.train)
    train = _rows(train_files, problems)
    if isinstance(config.eval, HoldOut):
        problems.report()
        train, held = split(train, config.eval)
    else:
        held = _rows(_apart(_files([config.eval]), train_files), problems) if config.eval else []
        problems.report()
    learned = lessons.dataset(train, "data.train", config.train)
    return learned, lessons.dataset(held, "data.eval", config.eval) if config.eval else None


def from_rows(
    rows: Iterable[Mapping[str, Any]],
    tokenizer: Tokenizer,
    renderer: Renderer | None = None,
    *,
    config: DataConfig | None = None,
    limit: int,
) -> Dataset:
    """A data set from rows in memory; `config.train` and `config.eval` are not read. Raises `DataError`."""
    lessons = Lessons(config or DataConfig(train="rows"), tokenizer, renderer, limit)
    return lessons.dataset([_in_memory(fields, number) for number, fields in enumerate(rows)], "rows")


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
