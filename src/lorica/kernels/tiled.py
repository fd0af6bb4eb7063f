"""Products with dense weights in C, where this processor has them: what the linears of a base are made of.

A row's sums are made in one order, whatever rows stand beside it; a low-rank product of zero changes no bit of them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lorica.kernels.choice import is_native
from lorica.kernels.frozen_weight import DenseWeight, FrozenWeight
from lorica.kernels.native import linears as native
from lorica.kernels.native.linears import Codes, Linear
from lorica.kernels.native.rowwise import is_as_many
from lorica.kernels.rowwise import RowBranch, rowwise

FEW_ROWS = 128
"""Rows up to which W is read as it lies, where the sums are the same: to lay it out takes longer than the product."""


def reads_codes(shape: Sequence[int], rows: int, dtype: torch.dtype) -> bool:
    """Whether products of so many rows on a CPU read a quantised weight as it is stored."""
    return _in_tiles(shape) and is_native("linears", torch.empty(0, dtype=dtype)) and are_many(rows)


def are_many(rows: int) -> bool:
    """Whether so many rows go where W is laid out; of what C has."""
    return rows > FEW_ROWS or not is_as_many()


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
    return tiled_linears(x, (W,), (bias,))[0]


def tiled_linears(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """Several of one input, which is read once, and whose gradient is one sum."""
    pairs = list(zip(weights, biases, strict=True))
    if all(has_tiles(x, W, bias) for W, bias in pairs):
        return _Tiled.apply(x, *weights, *biases)  # type: ignore[return-value]
    return tuple(nn.functional.linear(x, W, bias) for W, bias in pairs)


class InTiles(FrozenWeight):
    """Whose products with more than a few rows are these."""

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        if not fits(x, self) or not are_many(len(flat)) or (bias is not None and bias.dtype != x.dtype):
            return super().product(x, bias)
        bias = None if bias is None else bias.detach()
        (y,) = native.linears(flat.detach(), [Linear(self.for_tiles(), bias)], None).outputs
        return y.view(*x.shape[:-1], y.shape[1])

    def transposed_product(self, g: Tensor, onto: Tensor | None = None) -> Tensor:
        if onto is None and fits(g, self):
            return _transposed([g.reshape(-1, g.shape[-1])], [self.for_tiles()]).view(*g.shape[:-1], self.shape[1])
        return super().transposed_product(g, onto)


class TiledWeight(InTiles, DenseWeight):
    """As it is stored, d_out by d_in."""

    @property
    def tiled(self) -> bool:
        return not self.transposed

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            return tiled_linear(x, self.stored, bias)

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return tiled_linear(x, self.stored, bias)


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, *parts):  # type: ignore[override]
        count = len(parts) // 2
        weights, biases = parts[:count], parts[count:]
        ctx.save_for_backward(x if any(ctx.needs_input_grad[1 : count + 1]) else None, *weights)
        flat, given = x.reshape(-1, x.shape[-1]), list(zip(weights, biases, strict=True))
        if are_many(len(flat)):
            made = native.linears(flat, [Linear(W, bias) for W, bias in given], None).outputs
        else:
            made = rowwise(flat, [RowBranch(DenseWeight(W), bias) for W, bias in given])
        # no view: who is given it may write into it
        return tuple(torch.ops.aten._unsafe_view(y, [*x.shape[:-1], y.shape[1]]) for y in made)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):  # type: ignore[override]
        x, *weights = ctx.saved_tensors
        count = len(weights)
        wants_x, of_weights, of_biases = (
            ctx.needs_input_grad[0],
            ctx.needs_input_grad[1 : count + 1],
            ctx.needs_input_grad[count + 1 :],
        )
        flat = [grad.reshape(-1, grad.shape[-1]) for grad in grads]
        return (
            _transposed(flat, weights).view(*grads[0].shape[:-1], weights[0].shape[1]) if wants_x else None,
            *(g.T @ x.reshape(-1, x.shape[-1]) if wants else None for g, wants in zip(flat, of_weights, strict=True)),
            *(g.sum(0) if wants else None for g, wants in zip(flat, of_biases, strict=True)),
        )


def _transposed(grads: Sequence[Tensor], weights: Sequence[Tensor | Codes]) -> Tensor:
    """g (T, N) and W (N, K) of each -> the sum of g W (T, K)."""
    return native.input_gradient(grads, [Linear(W) for W in weights], None)[1]
