"""RMSNorm in C: a row is read from memory once, forward and backward."""

import ctypes
from functools import cache

import torch
from torch import Tensor

from lorica.kernels.native.build import Function, library


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., d), weight (d,), bfloat16 -> (..., d)"""
    return _RMSNorm.apply(x, weight, eps)  # type: ignore[return-value]


@cache
def _functions() -> tuple[Function, Function, Function]:
    sizes = [ctypes.c_int64] * 2
    return (
        library().function("lorica_rms_norm", 4, *sizes, ctypes.c_float),
        library().function("lorica_rms_norm_backward", 5, *sizes),
        library().function("lorica_rms_norm_weight", 4, *sizes),
    )


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):  # type: ignore[override]
        x, weight = x.contiguous(), weight.contiguous()
        y, inverse = torch.empty_like(x), x.new_empty(x.shape[:-1], dtype=torch.float32)
        pointers = (x.data_ptr(), weight.data_ptr(), y.data_ptr(), inverse.data_ptr())
        _functions()[0](*pointers, inverse.numel(), x.shape[-1], eps)
        ctx.save_for_backward(x, weight, inverse)
        return y

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        x, weight, inverse = ctx.saved_tensors
        _, of_x, of_weight = _functions()
        sizes = inverse.numel(), x.shape[-1]
        given = (grad := grad.contiguous()).data_ptr(), x.data_ptr()
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.empty_like(x)
            of_x(*given, weight.data_ptr(), inverse.data_ptr(), grad_x.data_ptr(), *sizes)
        if ctx.needs_input_grad[1]:
            grad_weight = torch.empty_like(weight)
            of_weight(*given, inverse.data_ptr(), grad_weight.data_ptr(), *sizes)
        return grad_x, grad_weight, None
