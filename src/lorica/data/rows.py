"""A row as a file gives it, before its shape is known."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """`origin` is where it is found (`train.jsonl:17`), `file` the file it is held out with.

    `refused` says why a row cannot be used at all; its fields are then empty.
    """

    fields: Mapping[str, Any]
    origin: str
    file: str
    refused: str | None = None
