"""Lengths of the rows of W + s B A, in C: W is read once and never widened."""

import ctypes
from functools import cache

import torch
from torch import Tensor

from lorica.kernels.native.build import Function, library


def norms(W: Tensor, squares: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """n (d_out,), of W (d_out, d_in) bfloat16; A (r, d_in), B (d_out, r) and squares (d_out,), all float32."""
    W, squares, A, B = (part.contiguous() for part in (W, squares, A, B))
    gram, found = A.new_empty(A.shape[0], A.shape[0]), torch.empty_like(squares)
    _function()(*(part.data_ptr() for part in (W, A, B, gram, squares, found)), W.shape[0], *A.shape, scale)
    # torch's root, as of the squares alone: it is not that of C to the bit
    return found.sqrt_()


@cache
def _function() -> Function:
    return library().function("lorica_row_norms", 6, *[ctypes.c_int64] * 3, ctypes.c_float)
