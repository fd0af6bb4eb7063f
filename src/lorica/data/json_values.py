"""JSON as RFC 8259 means it and nothing more: no duplicate names, no NaN, no text that is not Unicode."""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

_BLANK = re.compile(r"[ \t\r\n]*")
_SURROGATE = re.compile(r"\\u[dD][89abAB]")


class JsonProblem(ValueError):
    """What is wrong, and where in the text it is (both from 1; 0 when the place is not known)."""

    def __init__(self, what: str, line: int = 0, column: int = 0) -> None:
        super().__init__(what)
        self.line, self.column = line, column


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise JsonProblem(f"field {twice!r} appears twice")
    return fields


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise JsonProblem(f"{digits} is too large for a number")
    return value


def _no_constant(name: str) -> Any:
    raise JsonProblem(f"{name} is not JSON; write null, or leave the row out")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_no_constant)


def parse(text: str) -> Any:
    """One JSON value that fills the whole text. Raises `JsonProblem`."""
    value, end = _value_at(text, _after_blank(text, 0))
    end = _after_blank(text, end)
    if end != len(text):
        raise _at(text, end, "more follows after the end of the row")
    return value


def array_items(text: str) -> Iterator[tuple[int, Any]]:
    """The items of a text that is one JSON array, each with the line it starts on. Raises `JsonProblem`."""
    position = _after_blank(text, _after_blank(text, 0) + 1)
    line, counted = 1, 0
    more = not text.startswith("]", position)
    while more:
        line, counted = line + text.count("\n", counted, position), position
        value, position = _value_at(text, position)
        yield line, value
        position = _after_blank(text, position)
        more = text.startswith(",", position)
        position = _after_blank(text, position + 1) if more else position
    if not text.startswith("]", position):
        raise _at(text, position, "the array of rows is not closed: a ',' or ']' is missing")
    if (end := _after_blank(text, position + 1)) != len(text):
        raise _at(text, end, "more follows after the array of rows")


def _after_blank(text: str, position: int) -> int:
    match = _BLANK.match(text, position)
    return match.end() if match else position


def _at(text: str, position: int, what: str) -> JsonProblem:
    line = text.count("\n", 0, position) + 1
    return JsonProblem(what, line, position - text.rfind("\n", 0, position))


def _value_at(text: str, start: int) -> tuple[Any, int]:
    try:
        value, end = _DECODER.raw_decode(text, start)
    except JsonProblem as problem:
        raise _at(text, start, str(problem)) from None
    except json.JSONDecodeError as error:
        raise JsonProblem(error.msg, error.lineno, error.colno) from None
    except RecursionError:
        raise _at(text, start, "nested too deeply") from None
    except ValueError as error:
        raise _at(text, start, str(error).split(";", maxsplit=1)[0]) from None
    if _SURROGATE.search(text, start, end):
        _refuse_half_characters(value, text, start)
    return value, end


def _refuse_half_characters(value: Any, text: str, start: int) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise _at(text, start, f"{half} is half a character (a lone surrogate), which is not Unicode") from None
