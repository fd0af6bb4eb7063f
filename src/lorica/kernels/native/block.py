"""A decoder's block on a few rows as one call of C: the same ops in the same order, no Python between them."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lorica.errors import NoRoomError
from lorica.kernels.native.build import Function, address, library

if TYPE_CHECKING:
    from lorica.kernels.rowwise import RowBranch


@dataclass(frozen=True, eq=False, kw_only=True)
class Reading:
    """What all blocks of one pass read: see `kernels/paged_attention.py`; cos and sin (T, E)."""

    tables: Tensor
    documents: Tensor
    positions: Tensor
    cos: Tensor
    sin: Tensor

    @property
    def pointers(self) -> tuple[int, ...]:
        return tuple(part.data_ptr() for part in (self.tables, self.documents, self.positions, self.cos, self.sin))


def block_(
    x: Tensor,
    norms: Sequence[Tensor | None],
    branches: Sequence["RowBranch"],
    blocks: tuple[Tensor, Tensor],
    reading: Reading,
    heads: tuple[int, int, int],
    window: int,
    eps: float,
) -> None:
    """x (n, d) bfloat16, in its place.

    norms      weights before attention and before the MLP, and of q and k, or None
    branches   q, k, v, o, gate, up, down
    heads      of queries, of keys, and the width of one
    """
    given = [address(norm) for norm in norms]
    for branch in branches:
        W, bias = branch.weight.as_read(torch.bfloat16), branch.bias
        terms, count = branch.terms.native if branch.terms else (0, 0)
        given += (address(W), address(bias), 0, terms, W.shape[0], count)
    told = (ctypes.c_int64 * len(given))(*given)
    pointers = (x.data_ptr(), ctypes.addressof(told), blocks[0].data_ptr(), blocks[1].data_ptr(), *reading.pointers)
    sizes = (*x.shape, *heads, branches[4].weight.shape[0], reading.tables.shape[1], window)
    if _function()(*pointers, *sizes, eps, heads[2] ** -0.5):
        raise NoRoomError("block: out of memory")


@cache
def _function() -> Function:
    return library().function("lorica_block", 9, *[ctypes.c_int64] * 8, ctypes.c_float, ctypes.c_float)
