"""SwiGLU's product in C, and its two gradients with the product made again, each in one pass."""

import ctypes
from functools import cache

import torch
from torch import Tensor

from lorica.kernels.native.build import Function, address, library

TOGETHER = 32
"""Rows whose sums are made together."""


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, (..., f) bfloat16, without gradient."""
    gate, up = gate.contiguous(), up.contiguous()
    h = torch.empty_like(gate)
    _functions()[0](gate.data_ptr(), up.data_ptr(), h.data_ptr(), h.numel())
    return h


def swiglu_backward_(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dg, du and h from dh, g and u; du stands in the place of dh."""
    return _backward(grad, gate, up, None)


def swiglu_backward_summed_(
    grad: Tensor, gate: Tensor, up: Tensor
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """The same of (T, f), and the sums of dg g and du u over the rows, (f,) float32."""
    sums = gate.new_empty(-(-len(gate) // TOGETHER), 2, gate.shape[1], dtype=torch.float32)
    made = _backward(grad, gate, up, sums)
    of_gate, of_up = sums.sum(0)
    return *made, (of_gate, of_up)


def _backward(grad: Tensor, gate: Tensor, up: Tensor, sums: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    gate, up = gate.contiguous(), up.contiguous()
    grad_gate, h = torch.empty_like(gate), torch.empty_like(gate)
    tensors = map(address, (grad, gate, up, grad_gate, h, sums))
    width = gate.shape[-1]
    rows = gate.numel() // max(width, 1)
    _functions()[1](*tensors, rows, width, TOGETHER)
    return grad_gate, grad, h


@cache
def _functions() -> tuple[Function, Function]:
    return (
        library().function("lorica_swiglu", 3, ctypes.c_int64),
        library().function("lorica_swiglu_backward", 6, *[ctypes.c_int64] * 3),
    )
