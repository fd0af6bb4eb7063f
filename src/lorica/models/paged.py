"""Keys and values in blocks of a few tokens, for an engine whose documents come, grow, share beginnings and go.

KVBlocks holds them for every layer of one base.  Who has which block is the engine's business; one pass is told by a
Paged, which writes new tokens to their places and moves nothing else.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from lorica.kernels import BLOCK
from lorica.models.config import DecoderConfig


class KVBlocks:
    """`count` blocks: of each layer keys and values (count, BLOCK, heads_kv, d_head)."""

    def __init__(
        self, shape: DecoderConfig, count: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        self.count = count
        size = (shape.layers, 2, count, BLOCK, shape.heads_kv, shape.d_head)
        self._stored = torch.zeros(size, dtype=dtype, device=device)
        self._layers = [(layer[0], layer[1]) for layer in self._stored]

    @staticmethod
    def bytes_of_one(shape: DecoderConfig, dtype: torch.dtype) -> int:
        return 2 * shape.layers * BLOCK * shape.heads_kv * shape.d_head * dtype.itemsize

    @property
    def bytes(self) -> int:
        return self._stored.nbytes

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        return self._layers[index]


@dataclass(frozen=True, eq=False)
class Paged:
    """What a pass of an engine has for a cache.

    tables    block numbers of each document, in order, enough for what it holds and what is new
    lengths   tokens of each document that are held already, a beginning that it shares among them
    """

    blocks: KVBlocks
    tables: tuple[tuple[int, ...], ...]
    lengths: list[int]

    apart: ClassVar[bool] = True

    @cached_property
    def table(self) -> Tensor:
        """(D, most) int32, on the CPU or where the blocks are; 0 behind the last block of a document."""
        most = max(map(len, self.tables), default=0)
        rows = [[*row, *(0,) * (most - len(row))] for row in self.tables]
        return torch.tensor(rows, dtype=torch.int32, device=self.blocks.layer(0)[0].device)

    def advance(self, documents: tuple[int, ...]) -> None:
        """Nothing: lengths are the engine's."""
