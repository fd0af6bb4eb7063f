"""RMSNorm in C: a row is read from memory once, forward and backward."""

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lorica.kernels.native.build import Function, address, library, whole


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., d), weight (d,), bfloat16 -> (..., d)"""
    # a call of torch's that may be recorded takes as long as the kernel does of one row
    if torch.is_grad_enabled():
        return _RMSNorm.apply(x, weight, eps)  # type: ignore[return-value]
    return _normed(x, None, weight, eps).y


def residual_norm(x: Tensor, added: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x and added (..., d), weight (d,), bfloat16 -> h = x + added, and its norm; the gradient of x is made in one."""
    if torch.is_grad_enabled():
        return _ResidualNorm.apply(x, added, weight, eps)  # type: ignore[return-value]
    made = _normed(x, added, weight, eps)
    return made.h, made.y


@cache
def _functions() -> tuple[Function, Function, Function]:
    sizes = [ctypes.c_int64] * 2
    return (
        library().function("lorica_rms_norm", 6, *sizes, ctypes.c_float),
        library().function("lorica_rms_norm_backward", 6, *sizes),
        library().function("lorica_rms_norm_weight", 4, *sizes),
    )


class _Normed(NamedTuple):
    """h and y (..., d), and 1 / sqrt(mean(h^2) + eps) of each row."""

    h: Tensor
    y: Tensor
    inverse: Tensor


def _normed(x: Tensor, added: Tensor | None, weight: Tensor, eps: float) -> _Normed:
    x, added, weight = x.contiguous(), whole(added), weight.contiguous()
    made = _Normed(
        x if added is None else torch.empty_like(x),
        torch.empty_like(x),
        x.new_empty(x.shape[:-1], dtype=torch.float32),
    )
    _functions()[0](*map(address, (x, added, weight, *made)), made.inverse.numel(), x.shape[-1], eps)
    return made


def _gradients(
    kept: Sequence[Tensor], of_y: Tensor, of_h: Tensor | None, wanted: Sequence[bool]
) -> list[Tensor | None]:
    """Of h, with what it is by other ways, and of the weight; None where it is not wanted."""
    (h, weight, inverse), of_y, of_h = kept, of_y.contiguous(), whole(of_h)
    weight = weight.contiguous()
    _, of_rows, of_weight = _functions()
    sizes = inverse.numel(), h.shape[-1]
    grads = [torch.empty_like(one) if wants else None for one, wants in zip((h, weight), wanted, strict=True)]
    if grads[0] is not None:
        of_rows(*map(address, (of_y, of_h, h, weight, inverse, grads[0])), *sizes)
    if grads[1] is not None:
        of_weight(*map(address, (of_y, h, inverse, grads[1])), *sizes)
    return grads


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):  # type: ignore[override]
        made = _normed(x, None, weight, eps)
        ctx.save_for_backward(made.h, weight, made.inverse)
        return made.y

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        return *_gradients(ctx.saved_tensors, grad, None, ctx.needs_input_grad[:2]), None


class _ResidualNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, added, weight, eps):  # type: ignore[override]
        made = _normed(x, added, weight, eps)
        ctx.save_for_backward(made.h, weight, made.inverse)
        ctx.set_materialize_grads(False)
        return made.h, made.y

    @staticmethod
    def backward(ctx, of_h, of_y):  # type: ignore[override]
        of_x, of_added, of_weight, _ = ctx.needs_input_grad
        if of_y is None:
            grad, grad_weight = of_h, None
        else:
            grad, grad_weight = _gradients(ctx.saved_tensors, of_y, of_h, (of_x or of_added, of_weight))
        return grad if of_x else None, grad if of_added else None, grad_weight, None
