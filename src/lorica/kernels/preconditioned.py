"""The gradient of B by the metric of a frozen A: what a step does to W no longer depends on A's scale or angles.

    forward   B                            A (r, d_in), B (d_out, r)
    backward  g -> s^-2 g (A A^T)^-1       the minimiser of || s g' A - dL/dW ||_F over g'

LoRA-FA's later version (Zhang et al., arXiv:2308.03303), there a part of the optimiser.  Linear in g, so the gradients
of micro-batches still add up.
"""

import torch
from torch import Tensor


class _Preconditioned(torch.autograd.Function):
    @staticmethod
    def forward(ctx, B, A, scale):  # type: ignore[override]
        ctx.save_for_backward(A)
        ctx.scale = scale
        return B.view_as(B)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        (A,) = ctx.saved_tensors
        return grad @ inverse_metric(A, ctx.scale).to(grad.dtype), None, None


def preconditioned(B: Tensor, A: Tensor, scale: float) -> Tensor:
    """B itself, whose gradient will be multiplied by `inverse_metric`."""
    return _Preconditioned.apply(B, A, scale)  # type: ignore[return-value]


def inverse_metric(A: Tensor, scale: float) -> Tensor:
    """s^-2 (A A^T)^-1 in float64; where rows of A depend on each other, its pseudo-inverse."""
    wide = A.double()
    return torch.linalg.pinv(wide @ wide.T, hermitian=True) / scale**2
