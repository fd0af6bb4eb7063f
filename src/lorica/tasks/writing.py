"""Texts as a base was taught to read them: its own special tokens, pairs, words, and where each token comes from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from lorica.data import DataConfig
from lorica.data.shapes import text_of
from lorica.errors import DataError, ModelError
from lorica.tasks.contract import Reader

Fields = Mapping[str, Any]
FieldName = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True)
class Writer:
    """Writes rows of at most `limit` tokens with the tokenizer of a base."""

    tokenizer: Any
    limit: int
    over_length: str

    @classmethod
    def of(cls, config: DataConfig, reader: Reader) -> "Writer":
        if reader.tokenizer is None:
            raise ModelError("this base brings no tokenizer; load it from a folder that has one")
        if config.max_length is not None and config.max_length > reader.limit:
            raise DataError(
                f"data.max_length: {config.max_length} is above the {reader.limit} tokens that the base allows"
            )
        return cls(reader.tokenizer, config.max_length or reader.limit, config.over_length)

    def __call__(self, first: Any, second: Any = None, *, cut: str | bool = "longest_first", **asked: Any) -> Any | str:
        """What the tokenizer makes of a text or a pair, or why the row is dropped.  `cut`: which of the two is
        shortened where rows may be (`over_length: truncate`)."""
        written = self.tokenizer(first, second, verbose=False, **asked)
        length = len(written["input_ids"])
        if not length:
            return "empty text"
        if length <= self.limit:
            return written
        if self.over_length == "error":
            raise DataError(f"{length} tokens, more than {self.limit}; shorten it or drop what is longer")
        if self.over_length == "drop":
            return f"longer than {self.limit} tokens"
        written = self.tokenizer(first, second, verbose=False, truncation=cut, max_length=self.limit, **asked)
        written["cut"] = True
        return written


def ids_of(written: Any) -> np.ndarray:
    return np.array(written["input_ids"], dtype=np.int32)


def segments_of(written: Any) -> np.ndarray | None:
    found = written.get("token_type_ids")
    return None if found is None else np.array(found, dtype=np.int32)


def was_cut(written: Any) -> bool:
    return "cut" in written


def filled_text(fields: Fields, key: str) -> str:
    """The text of a field; DataError where it is missing, something else, or empty."""
    text = text_of(fields, key)
    if not text.strip():
        raise DataError(f"field {key!r}: empty")
    return text
