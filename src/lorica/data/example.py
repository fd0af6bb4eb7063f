"""One row as the model sees it: tokens, and which of them are learned.

index      0     1     2     3     4     5
input_ids  bos   Q     :     4     2     eos
labels     .     .     .     x     x     x      x: the token at this index is predicted from those before it
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

TokenIds = npt.NDArray[np.int32]
LabelMask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Example:
    """`input_ids` (length,) int32; `labels` (length,) bool, never true at index 0, which nothing precedes.

    `row` is the stable id of the example in its data set (windows of one text have ids of their own);
    `origin` is where a person finds it, as in `train.jsonl:17`.
    """

    input_ids: TokenIds
    labels: LabelMask
    row: int
    origin: str

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class Dropped:
    """A row that was read and is not trained on, and why."""

    row: int
    origin: str
    reason: str
