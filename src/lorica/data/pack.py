"""Documents laid end to end in one row of tokens, each with positions of its own.

tokens     a0 a1 a2 | b0 b1 | c0 c1 c2
documents   0  0  0 |  1  1 |  2  2  2      no attention crosses a bar
positions   0  1  2 |  0  1 |  0  1  2
labels      .  x  x |  .  x |  .  .  x      nor does a loss: a document's first token is never a label
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lorica.data.example import Example, LabelMask, TokenIds

IGNORED = -100


@dataclass(frozen=True, eq=False)
class Packed:
    """Flat arrays (tokens,): ids, mask, number of the document, position in it, and the data set's row id."""

    tokens: TokenIds
    labels: LabelMask
    documents: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int64]


def pack(examples: Sequence[Example]) -> Packed:
    """All examples in one row without padding."""
    lengths = [len(example) for example in examples]
    return Packed(
        tokens=np.concatenate([example.input_ids for example in examples]),
        labels=np.concatenate([example.labels for example in examples]),
        documents=np.repeat(np.arange(len(examples), dtype=np.int32), lengths),
        positions=np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
        rows=np.repeat(np.array([example.row for example in examples], dtype=np.int64), lengths),
    )


@dataclass(frozen=True, eq=False)
class Padded:
    """A rectangle (rows, longest). `attention_mask` is 0 on padding, `labels` are -100 where nothing is learned."""

    input_ids: npt.NDArray[np.int64]
    attention_mask: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]


def pad(examples: Sequence[Example], pad_id: int) -> Padded:
    """Examples as rows, padded on the right. The mask knows positions only: real tokens may equal `pad_id`."""
    lengths = np.array([len(example) for example in examples])
    real = np.arange(lengths.max())[None, :] < lengths[:, None]
    ids = np.full(real.shape, pad_id, dtype=np.int64)
    labels = np.full(real.shape, IGNORED, dtype=np.int64)
    ids[real] = np.concatenate([example.input_ids for example in examples])
    labels[real] = np.concatenate([np.where(each.labels, each.input_ids, IGNORED) for each in examples])
    return Padded(ids, real.astype(np.int64), labels)
