"""SwiGLU: the product of a gated MLP, and its two gradients with the product made again.

    h = silu(g) u        silu(g) = g sigma(g)
    dg = dh u sigma(g) (1 + g (1 - sigma(g)))        du = dh silu(g)

g, u, h and their gradients (..., f).  Shazeer 2020, arXiv:2002.05202, equation 6.
"""

import torch
from torch import Tensor, nn

from lorica.kernels.choice import is_native
from lorica.kernels.native import swiglu as native


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, of one shape; both are all that is kept."""
    return _SwiGLU.apply(gate, up) if torch.is_grad_enabled() else _product(gate, up)  # type: ignore[return-value]


def swiglu_backward_(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dg, du and h from dh, g and u, all of one shape; du stands in the place of dh, which is contiguous."""
    if is_native("swiglu", grad, gate, up):
        return native.swiglu_backward_(grad, gate, up)
    silu = nn.functional.silu(gate)
    return torch.ops.aten.silu_backward(grad * up, gate), grad.mul_(silu), silu.mul_(up)


def swiglu_backward_summed_(
    grad: Tensor, gate: Tensor, up: Tensor
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """The same of (T, f), and the sums of dg g and du u over the rows, (f,) in float32 or better."""
    if is_native("swiglu", grad, gate, up):
        return native.swiglu_backward_summed_(grad, gate, up)
    grad_gate, grad_up, h = swiglu_backward_(grad, gate, up)
    wide = torch.promote_types(gate.dtype, torch.float32)
    sums = ((part * y).sum(0, dtype=wide) for part, y in ((grad_gate, gate), (grad_up, up)))
    return grad_gate, grad_up, h, tuple(sums)  # type: ignore[return-value]


def _product(gate: Tensor, up: Tensor) -> Tensor:
    return native.swiglu(gate, up) if is_native("swiglu", gate, up) else nn.functional.silu(gate) * up


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up):  # type: ignore[override]
        ctx.save_for_backward(gate, up)
        return _product(gate, up)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        copied = torch.empty_like(grad, memory_format=torch.contiguous_format).copy_(grad)
        return swiglu_backward_(copied, *ctx.saved_tensors)[:2]
