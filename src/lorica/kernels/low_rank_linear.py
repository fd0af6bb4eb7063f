"""A frozen linear with a low-rank product beside it, by hand-written gradients where they are worth it.

no dropout      as siblings of one
dropout         _Dropped
A frozen        _FrozenA, with a trained bias or without
any other gain  the definition, under autograd; and so is all that autocast computes in another type
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lorica.kernels.choice import is_recast
from lorica.kernels.frozen_weight import FrozenWeight
from lorica.kernels.low_rank import LowRank, reference
from lorica.kernels.noise import Noise
from lorica.kernels.siblings import Branch, fused
from lorica.kernels.thin import thin_product


def low_rank_linear(
    x: Tensor, weight: FrozenWeight, bias: Tensor | None, low_rank: LowRank, noise: Noise | None = None
) -> Tensor:
    """`reference`.  A and B are cast to x.dtype (they are small); x is never cast."""
    if is_recast(x, weight.dtype):
        return reference(x, weight, bias, low_rank, noise)
    branch = Branch(weight, bias, low_rank)
    if branch.fuses(noise):
        return fused(x, (branch,))[0]
    frozen = low_rank.plain and low_rank.frozen
    if not low_rank.plain or (bias is not None and bias.requires_grad and not frozen):
        return reference(x, weight, bias, low_rank, noise)
    A, B = low_rank.A.to(x.dtype), low_rank.B.to(x.dtype)
    if frozen:
        return _FrozenA.apply(x, A, B, low_rank.scale, weight, bias, low_rank.dropping(noise))  # type: ignore
    return _Dropped.apply(x, low_rank.drop(x, noise), A, B, low_rank.scale, weight, bias)  # type: ignore[return-value]


def alone(x: Tensor, branch: Branch, noise: Noise | None = None) -> Tensor:
    """x (..., d_in) -> (..., d_out)"""
    if branch.low_rank is None:
        return branch.weight.linear(x, branch.bias)
    return low_rank_linear(x, branch.weight, branch.bias, branch.low_rank, noise)


def siblings(x: Tensor, branches: Sequence[Branch], noise: Noise | None = None) -> tuple[Tensor, ...]:
    """x (..., d_in) -> (..., d_out) of each branch; branches that do not fuse are called alone."""
    adapted = any(branch.low_rank for branch in branches)
    if adapted and all(branch.fuses(noise) and not is_recast(x, branch.weight.dtype) for branch in branches):
        return fused(x, branches)
    return tuple(alone(x, branch, noise) for branch in branches)


class _Dropped(torch.autograd.Function):
    """Where the low-rank path reads another input than the base: saves d and the (r, T) middle, never y or W."""

    @staticmethod
    def forward(ctx, x, dropped, A, B, scale, weight, bias):  # type: ignore[override]
        flat = dropped.reshape(-1, dropped.shape[-1])
        middle = A @ flat.T
        y = weight.product(x, bias).reshape(-1, B.shape[0])
        y.addmm_(middle.T, B.T, alpha=scale)
        ctx.save_for_backward(flat, middle, A, B)
        ctx.scale, ctx.weight, ctx.shape = scale, weight, x.shape
        return y.view(*x.shape[:-1], B.shape[0])

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        flat, middle, A, B = ctx.saved_tensors
        wants_x, wants_dropped, wants_A, wants_B = ctx.needs_input_grad[:4]
        grad = grad.reshape(-1, grad.shape[-1])
        inner = (grad @ B).mul_(ctx.scale)
        grad_x = ctx.weight.transposed_product(grad).view(ctx.shape) if wants_x else None
        return (
            grad_x,
            (inner @ A).view(ctx.shape) if wants_dropped else None,
            thin_product(inner.T, flat) if wants_A else None,
            thin_product(middle, grad, ctx.scale).T if wants_B else None,
            None,
            None,
            None,
        )


class _FrozenA(torch.autograd.Function):
    """A frozen: of the input only its (r, T) product with A is saved.  Masks are drawn again for the
    gradient of x."""

    @staticmethod
    def forward(ctx, x, A, B, scale, weight, bias, drop):  # type: ignore[override]
        middle = A @ drop(x).reshape(-1, x.shape[-1]).T
        y = weight.product(x, bias).reshape(-1, B.shape[0])
        y.addmm_(middle.T, B.T, alpha=scale)
        ctx.save_for_backward(middle, A, B)
        ctx.scale, ctx.weight, ctx.drop, ctx.shape = scale, weight, drop, x.shape
        return y.view(*x.shape[:-1], B.shape[0])

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        middle, A, B = ctx.saved_tensors
        wants_x, _, wants_B, _, _, wants_bias, _ = ctx.needs_input_grad
        grad = grad.reshape(-1, grad.shape[-1])
        grad_x = None
        if wants_x:
            through_A = ctx.drop(((grad @ B).mul_(ctx.scale) @ A).view(ctx.shape))
            grad_x = through_A.add_(ctx.weight.transposed_product(grad).view(ctx.shape))
        grad_B = thin_product(middle, grad, ctx.scale).T if wants_B else None
        return grad_x, None, grad_B, None, None, grad.sum(0) if wants_bias else None, None
