# pyright: reportMissingImports=false, reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
"""SwiGLU's product, and its two gradients with the product made again, each in one pass.

    h = silu(g) u        silu(g) = g sigma(g)
    dg = dh u sigma(g) (1 + g (1 - sigma(g)))        du = dh silu(g)

g, u, h and their gradients (..., f).  Shazeer 2020, arXiv:2002.05202, equation 6.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lorica.kernels.triton.tiles import parts

BLOCK = 1024


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up; gate and up are all that is kept."""
    return _SwiGLU.apply(gate, up)  # type: ignore[return-value]


def swiglu_backward_(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dg, du and h from dh, g and u, in their storage: gate becomes dg, up becomes du, grad becomes h.

    For a fused MLP, whose gradients of the down projection read h: nothing of that size is allocated.  The three are
    contiguous and of one shape and type.
    """
    _gradients(grad, gate, up, gate, up, grad)
    return gate, up, grad


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up):  # type: ignore[override]
        gate, up = gate.contiguous(), up.contiguous()
        h = torch.empty_like(gate)
        _forward[_grid(h)](gate, up, h, h.numel(), BLOCK=BLOCK)
        ctx.save_for_backward(gate, up)
        return h

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        gate, up = ctx.saved_tensors
        grad = grad.contiguous()
        grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(up)
        _gradients(grad, gate, up, grad_gate, grad_up, None)
        return grad_gate, grad_up


def _grid(x: Tensor) -> tuple[int]:
    return (parts(x.numel(), BLOCK),)


def _gradients(grad: Tensor, gate: Tensor, up: Tensor, grad_gate: Tensor, grad_up: Tensor, h: Tensor | None) -> None:
    """`h` None: it is not made again."""
    _backward[_grid(gate)](grad, gate, up, grad_gate, grad_up, h, gate.numel(), BLOCK=BLOCK)


@triton.jit
def _forward(gate_ptr, up_ptr, h_ptr, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(gate_ptr + at, mask=at < count, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + at, mask=at < count, other=0.0).to(tl.float32)
    tl.store(h_ptr + at, (gate * tl.sigmoid(gate) * up).to(h_ptr.dtype.element_ty), mask=at < count)


@triton.jit
def _backward(grad_ptr, gate_ptr, up_ptr, grad_gate_ptr, grad_up_ptr, h_ptr, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    grad = tl.load(grad_ptr + at, mask=at < count, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + at, mask=at < count, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + at, mask=at < count, other=0.0).to(tl.float32)
    sigma = tl.sigmoid(gate)
    along = grad * up * sigma * (1 + gate * (1 - sigma))
    tl.store(grad_gate_ptr + at, along.to(grad_gate_ptr.dtype.element_ty), mask=at < count)
    tl.store(grad_up_ptr + at, (grad * gate * sigma).to(grad_up_ptr.dtype.element_ty), mask=at < count)
    if h_ptr is not None:
        tl.store(h_ptr + at, (gate * sigma * up).to(h_ptr.dtype.element_ty), mask=at < count)
