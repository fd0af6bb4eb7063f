"""SwiGLU's product in C, and its two gradients with the product made again, each in one pass."""

import ctypes
from functools import cache

import torch
from torch import Tensor

from lorica.kernels.native.build import Function, library


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, (..., f) bfloat16, without gradient."""
    gate, up = gate.contiguous(), up.contiguous()
    h = torch.empty_like(gate)
    _functions()[0](gate.data_ptr(), up.data_ptr(), h.data_ptr(), h.numel())
    return h


def swiglu_backward_(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dg, du and h from dh, g and u; du stands in the place of dh."""
    gate, up = gate.contiguous(), up.contiguous()
    grad_gate, h = torch.empty_like(gate), torch.empty_like(gate)
    _functions()[1](*(part.data_ptr() for part in (grad, gate, up, grad_gate, h)), gate.numel())
    return grad_gate, grad, h


@cache
def _functions() -> tuple[Function, Function]:
    return (
        library().function("lorica_swiglu", 3, ctypes.c_int64),
        library().function("lorica_swiglu_backward", 5, ctypes.c_int64),
    )
