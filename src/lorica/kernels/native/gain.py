"""A gain on the columns of a product in C: one pass forward, one for both gradients."""

import ctypes
from functools import cache

import torch
from torch import Tensor

from lorica.kernels.native.build import Function, address, library, whole

TOGETHER = 128
"""Rows whose sums for the gradient of the gain are made together."""


def gained(z: Tensor, bias: Tensor | None, gain: Tensor) -> Tensor:
    """z + (z - bias) (gain - 1).  z (T, d) bfloat16, bias (d,) of its type or None, gain (d,) float32 -> (T, d)."""
    y = torch.empty(z.shape, dtype=z.dtype)
    given = (*map(whole, (z, bias, gain)), y)
    _functions()[0](*map(address, given), *z.shape)
    return y


def gained_backward(grad: Tensor, z: Tensor, bias: Tensor | None, gain: Tensor) -> tuple[Tensor, Tensor]:
    """grad * gain (T, d), and the sum of grad (z - bias) over the rows (d,) float32."""
    grad_z = torch.empty(grad.shape, dtype=grad.dtype)
    return grad_z, _sums(grad, z, bias, gain, grad_z)


def gain_gradient(grad: Tensor, z: Tensor, bias: Tensor | None, gain: Tensor) -> Tensor:
    """The second of `gained_backward` alone."""
    return _sums(grad, z, bias, gain, None)


def _sums(grad: Tensor, z: Tensor, bias: Tensor | None, gain: Tensor, grad_z: Tensor | None) -> Tensor:
    sums = grad.new_empty(-(-len(grad) // TOGETHER), grad.shape[1], dtype=torch.float32)
    given = (*map(whole, (grad, z, bias, gain)), grad_z, sums)
    _functions()[1](*map(address, given), *grad.shape, TOGETHER)
    return sums.sum(0)


@cache
def _functions() -> tuple[Function, Function]:
    sizes = [ctypes.c_int64] * 2
    return (
        library().function("lorica_gain", 4, *sizes),
        library().function("lorica_gain_backward", 6, *sizes, ctypes.c_int64),
    )
