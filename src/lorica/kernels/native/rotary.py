"""Rotary position embedding in C: heads are read where they stand and written once, forward and backward."""

import ctypes
from functools import cache

from torch import Tensor

from lorica.kernels.native.build import Function, library


@cache
def _function() -> Function:
    return library().function("lorica_rotary", 4, *[ctypes.c_int64] * 7, ctypes.c_float)


def turned(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    """x (T, H, E); cos and sin (T, 1, E), whose halves are equal; all bfloat16 -> (T, H, E), turned back by sign -1."""
    x, cos, sin = map(_with_channels_together, (x, cos, sin))
    y = x.new_empty(x.shape)
    pointers = (x.data_ptr(), cos.data_ptr(), sin.data_ptr(), y.data_ptr())
    strides = (x.stride(0), x.stride(1), cos.stride(0), sin.stride(0))
    _function()(*pointers, x.shape[0], x.shape[1], x.shape[2] // 2, *strides, sign)
    return y


def _with_channels_together(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
