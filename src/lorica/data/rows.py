"""A row as a file gives it, before its shape is known."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

OF_MANY_FORMS = ("tools", "tool_calls")


@dataclass(frozen=True)
class Row:
    """`origin` is where it is found (`train.jsonl:17`), `file` the file it is held out with.

    `refused` says why a row cannot be used at all; its fields are then empty.
    """

    fields: Mapping[str, Any]
    origin: str
    file: str
    refused: str | None = None


def without_fillers(value: Any, inside: bool = False) -> Any:
    """Fields without the nulls of a source of columns, which gives every tool and call the fields of all of them."""
    if isinstance(value, Mapping):
        kept = ((key, each) for key, each in value.items() if each is not None or not inside)
        return {key: without_fillers(each, inside or key in OF_MANY_FORMS) for key, each in kept}
    return [without_fillers(each, inside) for each in value] if isinstance(value, list) else value
