"""Attention over packed documents in C: no rectangles, no padding, keys read in place by all heads that share them.

T tokens of D documents, H heads of queries on K of keys, E width of a head.
"""

import ctypes
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from lorica.errors import NoRoomError
from lorica.kernels.native.build import Function, library


def document_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    documents: Sequence[int],
    *,
    causal: bool = True,
    window: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """q (T, H, E); k and v (T, K, E), bfloat16 -> (T, H, E); `documents` are their lengths, T in all.

    A token sees what stands in its own document, where causal not behind it, and with a window less than that far off.
    scale is above 0.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return _Attention.apply(q, k, v, starts_of(tuple(documents)), causal, window or 0, scale)  # type: ignore


@cache
def _functions() -> tuple[Function, Function]:
    numbers = (*[ctypes.c_int64] * 6, ctypes.c_float)
    return (
        library().function("lorica_attention", 6, *numbers),
        library().function("lorica_attention_backward", 10, *numbers),
    )


@lru_cache(maxsize=64)
def starts_of(documents: tuple[int, ...]) -> Tensor:
    """(D + 1,) int64: where each begins, and where the last ends."""
    with torch.inference_mode(False):  # kept for backward passes, which refuse what was made in inference
        return torch.tensor([0, *accumulate(documents)])


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, starts, causal, window, scale):  # type: ignore[override]
        q, k, v = (part.contiguous() for part in (q, k, v))
        out = torch.empty_like(q)
        logs = q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)
        ctx.sizes = (len(starts) - 1, q.shape[1], k.shape[1], q.shape[2], window, causal, scale)
        _called(_functions()[0], (q, k, v, out, logs, starts), ctx.sizes)
        ctx.save_for_backward(q, k, v, out, logs, starts)
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        q, k, v, out, logs, starts = ctx.saved_tensors
        grads = [torch.empty_like(part) for part in (q, k, v)]
        _called(_functions()[1], (q, k, v, out, grad.contiguous(), logs, *grads, starts), ctx.sizes)
        return *grads, None, None, None, None


def _called(function: Function, tensors: Sequence[Tensor], sizes: tuple[float, ...]) -> None:
    if function(*(tensor.data_ptr() for tensor in tensors), *sizes):
        raise NoRoomError("attention: out of memory")
