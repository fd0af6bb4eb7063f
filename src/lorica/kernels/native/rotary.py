"""Rotary position embedding in C: heads are read where they stand and written once, forward and backward."""

import ctypes
from functools import cache

import torch
from torch import Tensor

from lorica.kernels.native.build import Function, library


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (T, H, E); cos and sin (T, 1, E), whose halves are equal; all bfloat16 -> (T, H, E)."""
    return _Rotary.apply(x, cos, sin)  # type: ignore[return-value]


@cache
def _function() -> Function:
    return library().function("lorica_rotary", 4, *[ctypes.c_int64] * 7, ctypes.c_float)


def _turned(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    x, cos, sin = map(_with_channels_together, (x, cos, sin))
    y = x.new_empty(x.shape)
    pointers = (x.data_ptr(), cos.data_ptr(), sin.data_ptr(), y.data_ptr())
    strides = (x.stride(0), x.stride(1), cos.stride(0), sin.stride(0))
    _function()(*pointers, x.shape[0], x.shape[1], x.shape[2] // 2, *strides, sign)
    return y


def _with_channels_together(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, cos, sin):  # type: ignore[override]
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, 1)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, sin, -1), None, None
