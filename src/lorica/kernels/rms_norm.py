"""RMSNorm with its gradients by hand: seven passes over the rows where autograd makes twenty.

    y = weight * n        n = x / sqrt(mean(x^2) + eps)
    dx = (dn - n mean(dn n)) / sqrt(mean(x^2) + eps)        dn = weight * dy

The mean and n are taken in float32, or float64 where x is.  Zhang & Sennrich 2019, arXiv:1910.07467.
"""

import torch
from torch import Tensor

from lorica.kernels.choice import is_native
from lorica.kernels.native import rms_norm as native


def reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The definition.  x (..., d), weight (d,) -> (..., d)."""
    wide = x.to(_wide(x))
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`reference`."""
    if weight.shape == x.shape[-1:] and is_native("rms_norm", x, weight):
        return native.rms_norm(x, weight, eps)
    return _RMSNorm.apply(x, weight, eps)  # type: ignore[return-value]


def residual_norm(x: Tensor, added: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """h = x + added, x itself where nothing is added, and `rms_norm` of it: a step of a residual stream.  In C the
    gradients of its two ways are added up where one of them is made."""
    alike = weight.shape == x.shape[-1:] and (added is None or added.shape == x.shape)
    if alike and is_native("rms_norm", x, weight, *(() if added is None else (added,))):
        return native.residual_norm(x, added, weight, eps)
    h = x if added is None else x + added
    return h, rms_norm(h, weight, eps)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class _RMSNorm(torch.autograd.Function):
    """Every pass is over one type: a product of two types is not vectorised on CPU and takes four times as long."""

    @staticmethod
    def forward(ctx, x, weight, eps):  # type: ignore[override]
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=_wide(x))
        inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return _normed(x, inverse).to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        x, weight, inverse = ctx.saved_tensors
        wants_x, wants_weight = ctx.needs_input_grad[:2]
        normed = _normed(x, inverse)
        wide = torch.empty_like(normed).copy_(grad)
        grad_x = grad_weight = None
        if wants_weight:
            grad_weight = (wide * normed).flatten(0, -2).sum(0).to(weight.dtype)
        if wants_x:
            inner = wide.mul_(weight.to(wide.dtype))
            along = (inner * normed).mean(-1, keepdim=True)
            grad_x = inner.addcmul_(normed, along, value=-1).mul_(inverse).to(x.dtype)
        return grad_x, grad_weight, None


def _normed(x: Tensor, inverse: Tensor) -> Tensor:
    return torch.empty_like(x, dtype=inverse.dtype).copy_(x).mul_(inverse)
