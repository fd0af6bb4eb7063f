"""One row as the model sees it: tokens, and which of them are learned, or the answer that they have as a whole.

index      0     1     2     3     4     5
input_ids  bos   Q     :     4     2     eos
labels     .     .     .     x     x     x      x: the token at this index is predicted from those before it
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

TokenIds = npt.NDArray[np.int32]
LabelMask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Example:
    """`input_ids` (length,) int32; `labels` (length,) bool, never true at index 0, which nothing precedes.

    `row` is the stable id of the example in its data set (windows of one text have ids of their own);
    `origin` is where a person finds it, as in `train.jsonl:17`.  `cut`: its row was longer than the limit.
    """

    input_ids: TokenIds
    labels: LabelMask
    row: int
    origin: str
    cut: bool = field(default=False, kw_only=True)

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def units(self) -> int:
        """How much of it is learned: tokens, for an answer of its own 1."""
        return int(self.labels.sum())

    def read(self) -> bytes:
        """What the model reads of it: two rows in which this is the same are doubles."""
        return self.input_ids.tobytes()

    def content(self) -> Iterator[bytes]:
        """What the model is taught by it, and nothing else."""
        yield len(self).to_bytes(8, "little")
        yield self.input_ids.astype("<i4").tobytes()
        yield np.packbits(self.labels).tobytes()


@dataclass(frozen=True, eq=False)
class Answered(Example):
    """Tokens with a `target` for all of them, or one a place: a class, a number, tags (length,).

    `segments` (length,) int32 says which of two texts a token belongs to, where the base reads that.
    `labels` are the places that have an answer of their own; none where the row has one as a whole.
    """

    target: npt.NDArray[Any]
    segments: TokenIds | None = None

    @property
    def units(self) -> int:
        return max(1, super().units)

    def content(self) -> Iterator[bytes]:
        yield from super().content()
        yield str(self.target.dtype).encode()
        yield self.target.tobytes()
        yield b"" if self.segments is None else self.segments.tobytes()


@dataclass(frozen=True)
class Dropped:
    """A row that was read and is not trained on, and why."""

    row: int
    origin: str
    reason: str
