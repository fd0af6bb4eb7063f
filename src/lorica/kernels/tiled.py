"""Products with dense weights in C, where this processor has them: what the linears of the decoder family are made of.

A row's sums are made in one order, whatever rows stand beside it; a low-rank product of zero changes no bit of them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lorica.kernels.choice import is_native
from lorica.kernels.frozen_weight import DenseWeight, FrozenWeight
from lorica.kernels.native import linears as native
from lorica.kernels.native.linears import Linear
from lorica.kernels.rowwise import RowBranch, rowwise

FEW_ROWS = 128
"""Rows up to which W is read as it lies: to lay it out takes longer than the product."""


def fits(x: Tensor, weight: FrozenWeight) -> bool:
    """Whether the product of these runs in C."""
    alike = weight.tiled and weight.dtype == x.dtype and weight.device == x.device
    return alike and _in_tiles(weight.shape) and x.numel() > 0 and is_native("linears", x)


def has_tiles(x: Tensor, W: Tensor, bias: Tensor | None) -> bool:
    """Whether x W^T + b is a product that C has."""
    others = [W] if bias is None else [W, bias]
    return x.numel() > 0 and _in_tiles(W.shape) and is_native("linears", x, *others)


def _in_tiles(shape: Sequence[int]) -> bool:
    return all(size % native.SIDE == 0 for size in shape)


def tiled_linear(x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., K), W (N, K), b (N,) -> x W^T + b (..., N), with the gradients of those that want one."""
    if has_tiles(x, W, bias):
        return _Tiled.apply(x, W, bias)  # type: ignore[return-value]
    return nn.functional.linear(x, W, bias)


class TiledWeight(DenseWeight):
    """As it is stored, d_out by d_in."""

    @property
    def tiled(self) -> bool:
        return not self.transposed

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            return tiled_linear(x, self.stored, bias)

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return tiled_linear(x, self.stored, bias)

    def transposed_product(self, g: Tensor, onto: Tensor | None = None) -> Tensor:
        if onto is None and fits(g, self):
            return _transposed(g, self.stored)
        return super().transposed_product(g, onto)


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, W, bias):  # type: ignore[override]
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, W)
        flat = x.reshape(-1, x.shape[-1])
        if len(flat) <= FEW_ROWS:
            (y,) = rowwise(flat, (RowBranch(DenseWeight(W), bias),))
        else:
            (y,) = native.linears(flat, (Linear(W, bias),), None).outputs
        # no view: who is given it may write into it
        return torch.ops.aten._unsafe_view(y, [*x.shape[:-1], len(W)])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[override]
        x, W = ctx.saved_tensors
        wants_x, wants_W, wants_bias = ctx.needs_input_grad
        flat = grad.reshape(-1, grad.shape[-1])
        return (
            _transposed(grad, W) if wants_x else None,
            flat.T @ x.reshape(-1, x.shape[-1]) if wants_W else None,
            flat.sum(0) if wants_bias else None,
        )


def _transposed(g: Tensor, W: Tensor) -> Tensor:
    """g (..., N), W (N, K) -> g W (..., K)"""
    _, grad_x = native.input_gradient((g.reshape(-1, g.shape[-1]),), (Linear(W),), None)
    return grad_x.view(*g.shape[:-1], W.shape[1])
