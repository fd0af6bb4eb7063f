"""Names of answers: found in the rows, or given, and looked up with the near miss told.

A label is text, a whole number, or true and false, which are names like any other.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lorica.data import Row
from lorica.data.reading import kind_of
from lorica.errors import DataError, did_you_mean

Fields = Mapping[str, Any]
SHOWN = 12


def name_of(value: Any, field: str) -> str:
    """The name that a label is called by.  DataError where it is none."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, float) and value.is_integer():  # a column of whole numbers where one is missing
        return str(int(value))
    if isinstance(value, float):
        raise DataError(f"field {field!r}: a label is a name or a whole number, not {value}; numbers: task: regression")
    raise DataError(f"field {field!r}: a label is a name, not {'empty' if value == '' else kind_of(value)}")


def value_of(fields: Fields, field: str) -> Any:
    """What stands in a field.  DataError where it is missing or null."""
    if fields.get(field) is None:
        raise DataError(
            f"field {field!r} is missing{did_you_mean(field, [str(key) for key in fields if key != field])}"
        )
    return fields[field]


def found(
    rows: Sequence[Row], names: Callable[[Fields], Iterable[str]], *, least: int = 1, known: Sequence[str] = ()
) -> tuple[str, ...]:
    """The labels that `least` or more rows have, in the order of the checkpoint's own (`known`) where those hold them
    all, else sorted.  Rows without a label that can be read are left for the reading that reports them."""
    counts: Counter[str] = Counter()
    for row in rows:
        try:
            counts.update(names(row.fields))
        except DataError:
            continue
    labels = [label for label, count in counts.items() if count >= least]
    if known and set(labels) <= set(known):
        return tuple(known)
    return tuple(sorted(labels, key=_order(labels)))


def with_held(
    labels: tuple[str, ...], held: Sequence[Row], names: Callable[[Fields], Iterable[str]], known: Sequence[str]
) -> tuple[str, ...]:
    """With those that only rows held out have: chance holds rare labels out, and such a row is one that is missed.  The
    checkpoint's own stay as they are, since its head has no place for more."""
    more = set() if labels == tuple(known) else {*found(held, names)} - {*labels}
    return tuple(sorted((*labels, *more), key=_order((*labels, *more)))) if more else labels


def _order(labels: Sequence[str]) -> Callable[[str], Any]:
    return int if all(label.lstrip("-").isdecimal() for label in labels) else str


def number_of(label: str, labels: Sequence[str], field: str) -> int:
    """The place of a label among all.  DataError with the near miss for one that is unknown."""
    if label in labels:
        return labels.index(label)
    near = did_you_mean(label, labels)
    known = f"; there are {', '.join(labels[:SHOWN])}{' ...' if len(labels) > SHOWN else ''}"
    raise DataError(f"field {field!r}: the label {label!r} is unknown{near or known}")


def require_several(labels: Sequence[str], field: str, least: int = 1) -> None:
    """DataError where there is nothing to tell apart."""
    if len(labels) >= 2:
        return
    only = f"all rows have the label {labels[0]!r}" if labels else "no row has a label"
    enough = f" that {least} rows have" if least > 1 else ""
    raise DataError(f"field {field!r}: {only}{enough}; two are the least that can be told apart")
