"""The product of few long rows with many, in C: each is read once."""

import ctypes
from functools import cache

from torch import Tensor

from lorica.errors import NoRoomError
from lorica.kernels.native.build import Function, library


def thin_product(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """left (R, T), right (T, N), bfloat16 -> scale times their product (R, N), rounded once."""
    left, right = left.contiguous(), right.contiguous()
    out = right.new_empty(len(left), right.shape[1])
    if _function()(left.data_ptr(), right.data_ptr(), out.data_ptr(), *left.shape, right.shape[1], scale):
        raise NoRoomError("thin product: out of memory")
    return out


@cache
def _function() -> Function:
    return library().function("lorica_thin", 3, *[ctypes.c_int64] * 3, ctypes.c_double)
