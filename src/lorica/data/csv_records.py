"""CSV as RFC 4180 writes it: a header, records as wide as the header, quotes doubled inside quotes.

Read by hand rather than by `csv`, which takes quotes in the middle of a field as text, knows no line on which a
record starts, and whose longest field is a setting of the whole process.
"""

import re
from collections.abc import Iterator

from lorica.data.problems import Problems

_PLAIN = {separator: re.compile(rf'[^{separator}"\r\n]*') for separator in (",", "\t")}
_QUOTED = re.compile(r'"((?:[^"]|"")*+)"')
_END = re.compile(r"\r\n|\n|\r|\Z")


class BrokenRecord(ValueError):
    pass


def csv_records(text: str, separator: str, name: str, problems: Problems) -> Iterator[tuple[int, dict[str, str]]]:
    """Each record as its fields by name, with the line it starts on; blank lines are no records."""
    records = _records(text, separator)
    try:
        header = next(records, None)
        if header is None or not _good_header(header[1], name, problems):
            return
        for line, values in records:
            if len(values) == len(header[1]):
                yield line, dict(zip(header[1], values, strict=True))
            else:
                problems.add(f"{name}:{line}", f"{len(values)} fields where the header has {len(header[1])}")
    except BrokenRecord as broken:
        problems.add(f"{name}:{broken.args[1]}", broken.args[0])


def _good_header(header: list[str], name: str, problems: Problems) -> bool:
    for number, field in enumerate(header, 1):
        if not field.strip():
            problems.add(f"{name}:1", f"column {number} of the header has no name")
            return False
        if header.count(field) > 1:
            problems.add(f"{name}:1", f"field {field!r} appears twice in the header")
            return False
    return True


def _records(text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    position, line = 0, 1
    while position < len(text):
        start, (values, position) = position, _record(text, position, separator, line)
        if values != [""]:
            yield line, values
        line += text.count("\n", start, position) or 1


def _record(text: str, position: int, separator: str, line: int) -> tuple[list[str], int]:
    values = []
    while True:
        value, position = _field(text, position, separator, line)
        values.append(value)
        if not text.startswith(separator, position):
            break
        position += 1
    end = _END.match(text, position)
    if end is None:
        raise BrokenRecord(f"field {len(values)}: a quote in the middle; quote the whole field and double it", line)
    return values, end.end()


def _field(text: str, position: int, separator: str, line: int) -> tuple[str, int]:
    if not text.startswith('"', position):
        plain = _PLAIN[separator].match(text, position)
        return (plain.group(), plain.end()) if plain else ("", position)
    quoted = _QUOTED.match(text, position)
    if quoted is None:
        raise BrokenRecord("a quote is opened and never closed", line)
    return quoted.group(1).replace('""', '"'), quoted.end()
