"""A gain on the columns of a product in C: one pass forward, one for both gradients."""

import ctypes
from functools import cache

import torch
from torch import Tensor

from lorica.kernels.native.build import Function, library

TOGETHER = 128
"""Rows whose sums for the gradient of the gain are made together."""


def gained(z: Tensor, bias: Tensor | None, gain: Tensor) -> Tensor:
    """z + (z - bias) (gain - 1).  z (T, d) bfloat16, bias (d,) of its type or None, gain (d,) float32 -> (T, d)."""
    z, y = z.contiguous(), torch.empty(z.shape, dtype=z.dtype)
    _functions()[0](z.data_ptr(), _place(bias), gain.contiguous().data_ptr(), y.data_ptr(), *z.shape)
    return y


def gained_backward(grad: Tensor, z: Tensor, bias: Tensor | None, gain: Tensor) -> tuple[Tensor, Tensor]:
    """grad * gain (T, d), and the sum of grad (z - bias) over the rows (d,) float32."""
    grad_z = torch.empty(grad.shape, dtype=grad.dtype)
    return grad_z, _sums(grad, z, bias, gain, grad_z)


def gain_gradient(grad: Tensor, z: Tensor, bias: Tensor | None, gain: Tensor) -> Tensor:
    """The second of `gained_backward` alone."""
    return _sums(grad, z, bias, gain, None)


def _sums(grad: Tensor, z: Tensor, bias: Tensor | None, gain: Tensor, grad_z: Tensor | None) -> Tensor:
    grad, z, gain = grad.contiguous(), z.contiguous(), gain.contiguous()
    sums = grad.new_empty(-(-len(grad) // TOGETHER), grad.shape[1], dtype=torch.float32)
    pointers = (
        grad.data_ptr(),
        z.data_ptr(),
        _place(bias),
        gain.data_ptr(),
        0 if grad_z is None else grad_z.data_ptr(),
    )
    _functions()[1](*pointers, sums.data_ptr(), *grad.shape, TOGETHER)
    return sums.sum(0)


def _place(bias: Tensor | None) -> int | None:
    return None if bias is None else bias.contiguous().data_ptr()


@cache
def _functions() -> tuple[Function, Function]:
    sizes = [ctypes.c_int64] * 2
    return (
        library().function("lorica_gain", 4, *sizes),
        library().function("lorica_gain_backward", 6, *sizes, ctypes.c_int64),
    )
