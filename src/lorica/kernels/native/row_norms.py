"""The product that the lengths of the rows of W + s B A are read off, in C: W is read once and never widened."""

import ctypes
from functools import cache

import torch
from torch import Tensor

from lorica.kernels.native.build import Function, library


def wide_product(W: Tensor, A: Tensor) -> Tensor:
    """W A^T (d_out, r) float32, of W (d_out, d_in) bfloat16 and A (r, d_in) float32."""
    W, A = W.contiguous(), A.contiguous()
    product = torch.empty(len(W), len(A))
    _function()(W.data_ptr(), A.data_ptr(), product.data_ptr(), len(W), *A.shape)
    return product


@cache
def _function() -> Function:
    return library().function("lorica_wide_product", 3, *[ctypes.c_int64] * 3)
