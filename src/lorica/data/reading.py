"""Files to rows, strictly: whatever two readers could understand differently is an error with its file and line.

UTF-8 (with or without a mark), no duplicate keys, no NaN or Infinity, every CSV record as wide as its header.
"""

from collections.abc import Callable, Iterator
from typing import Any

from lorica.data.csv_records import csv_records
from lorica.data.docstrings import docstring_rows
from lorica.data.hub import hub_rows
from lorica.data.json_values import JsonProblem, array_items, parse
from lorica.data.problems import Problems
from lorica.data.rows import Row, without_fillers
from lorica.data.sources import HubSource, SourceFile
from lorica.errors import DataError

NOT_TEXT = "not UTF-8 text"
JSON_HOLDS = "a .json file holds one array of rows, or one row a line"
OTHER_FORMATS = {
    b"\xff\xfe": "UTF-16; save it as UTF-8",
    b"\xfe\xff": "UTF-16; save it as UTF-8",
    b"\x1f\x8b": "compressed with gzip; unpack it first",
    b"PK\x03\x04": "a zip archive; unpack it first",
    b"\xfd7zXZ": "compressed with xz; unpack it first",
    b"(\xb5/\xfd": "compressed with zstd; unpack it first",
    b"%PDF": "a PDF; export its text first",
}


def read(source: SourceFile | HubSource, problems: Problems) -> Iterator[Row]:
    """The rows of one file, in its order; problems are added to the list and their rows left out."""
    if isinstance(source, HubSource):
        yield from hub_rows(source)
        return
    try:
        other = other_format(source)
        if other and (source.named_alone or source.kind != "text"):
            problems.add(source.name, f"this is {other}")
            return
        yield from READERS[source.kind](source, problems)
    except OSError as error:
        problems.add(source.name, f"cannot be read: {error.strerror or error}")


def other_format(source: SourceFile) -> str | None:
    """What the first bytes of a file give it away as, when that is not something this room reads."""
    with source.path.open("rb") as file:
        head = file.read(8)
    return next((what for magic, what in OTHER_FORMATS.items() if head.startswith(magic)), None)


def decoded(raw: bytes, where: str, problems: Problems, first: bool = True) -> str | None:
    """UTF-8 text, a byte order mark at the very start left out; None, and a problem, when it is not."""
    try:
        return raw.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        problems.add(where, f"byte {error.start + 1} (0x{raw[error.start]:02x}) is not UTF-8; save the file as UTF-8")
        return None


def _jsonl(source: SourceFile, problems: Problems) -> Iterator[Row]:
    with source.path.open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            where = f"{source.name}:{number}"
            line = decoded(raw, where, problems, first=number == 1)
            if line and not line.isspace():
                yield from _json_row(line, where, source, problems)


def _json_row(line: str, where: str, source: SourceFile, problems: Problems) -> Iterator[Row]:
    try:
        yield Row(_object(parse(line)), where, source.relative)
    except JsonProblem as problem:
        hint = f"; {JSON_HOLDS}" if source.kind == "json" else ""
        problems.add(where, f"column {problem.column}: {problem}{hint}" if problem.column else f"{problem}{hint}")


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise JsonProblem(f"a row is an object with named fields, not {kind_of(value)}")
    return value


def kind_of(value: object) -> str:
    """What a JSON value is called in an error."""
    names = {dict: "an object", list: "an array", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")


def _json(source: SourceFile, problems: Problems) -> Iterator[Row]:
    text = _whole(source, problems)
    if text is None:
        return
    if not text.lstrip().startswith("["):
        if _one_object(text):
            problems.add(f"{source.name}:1", f"this is one object over several lines; {JSON_HOLDS}")
        else:
            yield from _jsonl(source, problems)
        return
    try:
        for line, value in array_items(text):
            yield Row(_object_at(value, f"{source.name}:{line}", problems), f"{source.name}:{line}", source.relative)
    except JsonProblem as problem:
        problems.add(f"{source.name}:{problem.line}", f"column {problem.column}: {problem}")


def _one_object(text: str) -> bool:
    try:
        return "\n" in text.strip() and isinstance(parse(text), dict)
    except JsonProblem:
        return False


def _object_at(value: Any, where: str, problems: Problems) -> dict[str, Any]:
    try:
        return _object(value)
    except JsonProblem as problem:
        problems.add(where, problem)
        return {}


def _whole(source: SourceFile, problems: Problems) -> str | None:
    raw = source.path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        what = f"byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8"
        problems.add(f"{source.name}:{line}", what)
        return None


def _separated(separator: str) -> Callable[[SourceFile, Problems], Iterator[Row]]:
    def rows(source: SourceFile, problems: Problems) -> Iterator[Row]:
        text = _whole(source, problems)
        if text is None:
            return
        for line, fields in csv_records(text, separator, source.name, problems):
            yield Row(fields, f"{source.name}:{line}", source.relative)

    return rows


def _parquet(source: SourceFile, problems: Problems) -> Iterator[Row]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(source.path) as file:
            _refuse_doubles(file.schema_arrow.names, source, problems)
            for batch in file.iter_batches(batch_size=1024):
                for fields in batch.to_pylist():
                    number += 1
                    yield Row(without_fillers(fields), f"{source.name}:{number}", source.relative)
    except (ArrowException, ValueError) as error:
        if isinstance(error, DataError):
            raise
        problems.add(f"{source.name}:{number + 1}", f"not readable as Parquet: {first_line(error)}")


def _refuse_doubles(names: list[str], source: SourceFile, problems: Problems) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        problems.add(source.name, f"field {twice!r} appears twice")
        problems.report()


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _text(source: SourceFile, problems: Problems) -> Iterator[Row]:
    """A whole file is one row. In a folder, a file that is not text is a dropped row; named alone, a problem."""
    raw = source.path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" not in text:
        yield Row({"text": text}, source.name, source.relative)
    elif source.named_alone:
        problems.add(source.name, f"{NOT_TEXT}; rows are read from .jsonl, .json, .csv, .tsv and .parquet")
    else:
        yield Row({}, source.name, source.relative, refused=NOT_TEXT)


def _image(source: SourceFile, problems: Problems) -> Iterator[Row]:
    """A row without pixels: they are read when the image is learned."""
    label = source.relative.partition("/")[0]
    yield Row({"image": str(source.path), "label": label}, source.name, source.relative)


READERS: dict[str, Callable[[SourceFile, Problems], Iterator[Row]]] = {
    "jsonl": _jsonl,
    "json": _json,
    "csv": _separated(","),
    "tsv": _separated("\t"),
    "parquet": _parquet,
    "text": _text,
    "docstrings": docstring_rows,
    "image": _image,
}
