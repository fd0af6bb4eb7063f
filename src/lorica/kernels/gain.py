"""A gain on the columns of a product beside a bias that has none, and both its gradients in one call.

    y = z + (z - b) (c - 1)        dz = c dy        dc = sum over rows of dy (z - b)

Written so that a gain of one leaves z to the bit.  z (T, d), b and c (d,).
"""

import torch
from torch import Tensor

from lorica.kernels.choice import is_native
from lorica.kernels.native import gain as native


def gained(z: Tensor, bias: Tensor | None, gain: Tensor) -> Tensor:
    """(T, d)"""
    if _is_native(z, bias, gain):
        return native.gained(z, bias, gain)
    return torch.addcmul(z, _without(z, bias), (gain - 1).to(z.dtype))


def gained_backward(grad: Tensor, z: Tensor, bias: Tensor | None, gain: Tensor) -> tuple[Tensor, Tensor]:
    """dz (T, d) and dc (d,), of y's gradient."""
    if _is_native(z, bias, gain):
        return native.gained_backward(grad, z, bias, gain)
    return grad * gain.to(grad.dtype), (grad * _without(z, bias)).sum(0, dtype=gain.dtype)


def gain_gradient(grad: Tensor, z: Tensor, bias: Tensor | None, gain: Tensor) -> Tensor:
    """dc (d,) alone."""
    if _is_native(z, bias, gain):
        return native.gain_gradient(grad, z, bias, gain)
    return (grad * _without(z, bias)).sum(0, dtype=gain.dtype)


def _is_native(z: Tensor, bias: Tensor | None, gain: Tensor) -> bool:
    return gain.dtype == torch.float32 and is_native("gain", z, *([] if bias is None else [bias]))


def _without(z: Tensor, bias: Tensor | None) -> Tensor:
    return z if bias is None else z - bias
