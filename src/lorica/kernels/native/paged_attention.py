"""Attention over keys and values in blocks, in C: one token and one head of keys at a time, each read where it lies."""

import ctypes
from functools import cache

import torch
from torch import Tensor

from lorica.errors import NoRoomError
from lorica.kernels.native.build import Function, library


def paged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: tuple[Tensor, Tensor],
    tables: Tensor,
    documents: Tensor,
    positions: Tensor,
    window: int,
) -> Tensor:
    """q (T, H, E), k and v (T, K, E), bfloat16 or float32 -> (T, H, E); `window` 0 for none."""
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    out = torch.empty_like(q)
    given = (q, k, v, out, *blocks, tables, documents, positions)
    (tokens, heads, width), keys = q.shape, k.shape[1]
    function = _function(q.dtype == torch.float32)
    sizes = (tokens, heads, keys, width, tables.shape[1], window, width**-0.5)
    if function(*(tensor.data_ptr() for tensor in given), *sizes):
        raise NoRoomError("attention: out of memory")
    return out


@cache
def _function(wide: bool) -> Function:
    name = "lorica_paged_attention_wide" if wide else "lorica_paged_attention"
    return library().function(name, 9, *[ctypes.c_int64] * 6, ctypes.c_float)
