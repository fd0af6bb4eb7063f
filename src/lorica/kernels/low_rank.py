"""LowRank: what a method of the LoRA family hands to a fused path, and the plain definition of what it computes.

    y = c_base * (W x) + bias  +  c_drop * (W d)  +  s * c_out * B (c_mid * A (c_in * d)) + bias_B
    d = dropout(x)

Every c is a vector or absent (1; c_drop absent means 0).  LoRA has none of them, DoRA c_base and c_out (c_drop with
dropout), VeRA c_mid and c_out, AdaLoRA c_mid.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lorica.kernels.frozen_weight import FrozenWeight
from lorica.kernels.noise import Noise


@dataclass(frozen=True, eq=False, kw_only=True)
class LowRank:
    """A (r, d_in), B (d_out, r); gains: `input` (d_in,), `middle` (r,), `output` (d_out,), `base` (d_out,),
    `dropped_base` (d_out,); `site` is the id under which dropout draws its masks."""

    A: Tensor
    B: Tensor
    scale: float
    bias: Tensor | None = None
    input: Tensor | None = None
    middle: Tensor | None = None
    output: Tensor | None = None
    base: Tensor | None = None
    dropped_base: Tensor | None = None
    dropout: float = 0.0
    site: int = 0

    @property
    def plain(self) -> bool:
        """No gains: the fused LoRA path applies."""
        gains = (self.bias, self.input, self.middle, self.output, self.base, self.dropped_base)
        return all(gain is None for gain in gains)

    def drop(self, x: Tensor, noise: Noise | None) -> Tensor:
        """The input of the low-rank path: x where there is no noise (evaluation) or no dropout."""
        return x if noise is None or not self.dropout else x * noise.keep(self.dropout, self.site, x)

    def delta(self, x: Tensor) -> Tensor:
        """The low-rank path alone, x already dropped: (..., d_in) -> (..., d_out)."""
        h = _gain(_gain(x, self.input) @ self.A.to(x.dtype).T, self.middle)
        y = _gain(h @ self.B.to(x.dtype).T, self.output) * self.scale
        return y if self.bias is None else y + self.bias.to(x.dtype)


def reference(
    x: Tensor, weight: FrozenWeight, bias: Tensor | None, low_rank: LowRank, noise: Noise | None = None
) -> Tensor:
    """The definition above, term by term.  x (..., d_in) -> (..., d_out)."""
    dropped = low_rank.drop(x, noise)
    y = _gained_product(x, weight, bias, low_rank.base) + low_rank.delta(dropped)
    if low_rank.dropped_base is not None:
        y = y + _gain(weight.product(dropped), low_rank.dropped_base)
    return y


def _gained_product(x: Tensor, weight: FrozenWeight, bias: Tensor | None, gain: Tensor | None) -> Tensor:
    """gain * (W x) + bias, written so that a gain of one leaves the base's own result to the bit."""
    y = weight.product(x, bias)
    if gain is None:
        return y
    return y + (y if bias is None else y - bias) * (gain - 1).to(x.dtype)


def _gain(x: Tensor, gain: Tensor | None) -> Tensor:
    return x if gain is None else x * gain.to(x.dtype)


class _Fused(torch.autograd.Function):
    """y = x W^T + bias + s (d A^T) B^T with the gradients by hand; saves d and the (T, r) middle, never y or W."""

    @staticmethod
    def forward(ctx, x, dropped, A, B, scale, weight, bias):  # type: ignore[override]
        flat = dropped.reshape(-1, dropped.shape[-1])
        middle = flat @ A.T
        y = weight.product(x, bias).reshape(-1, B.shape[0])
        y.addmm_(middle, B.T, alpha=scale)
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
            inner.T @ flat if wants_A else None,
            (middle.T @ grad).mul_(ctx.scale).T if wants_B else None,
            None,
            None,
            None,
        )


class _FusedShared(torch.autograd.Function):
    """_Fused without dropout: base and low-rank path read the same x, so its gradient is accumulated in one buffer."""

    @staticmethod
    def forward(ctx, x, A, B, scale, weight, bias):  # type: ignore[override]
        return _Fused.forward(ctx, x, x, A, B, scale, weight, bias)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        flat, middle, A, B = ctx.saved_tensors
        wants_x, wants_A, wants_B = ctx.needs_input_grad[:3]
        grad = grad.reshape(-1, grad.shape[-1])
        inner = (grad @ B).mul_(ctx.scale)
        grad_x = ctx.weight.transposed_product(grad).addmm_(inner, A).view(ctx.shape) if wants_x else None
        grad_A = inner.T @ flat if wants_A else None
        grad_B = (middle.T @ grad).mul_(ctx.scale).T if wants_B else None
        return grad_x, grad_A, grad_B, None, None, None


def low_rank_linear(
    x: Tensor, weight: FrozenWeight, bias: Tensor | None, low_rank: LowRank, noise: Noise | None = None
) -> Tensor:
    """`reference`, by hand-written gradients where the LowRank is plain and the bias frozen.

    A and B are cast to x.dtype (they are small); x is never cast.
    """
    if not low_rank.plain or (bias is not None and bias.requires_grad):
        return reference(x, weight, bias, low_rank, noise)
    A, B = low_rank.A.to(x.dtype), low_rank.B.to(x.dtype)
    if noise is None or not low_rank.dropout:
        return _FusedShared.apply(x, A, B, low_rank.scale, weight, bias)  # type: ignore[return-value]
    return _Fused.apply(x, low_rank.drop(x, noise), A, B, low_rank.scale, weight, bias)  # type: ignore[return-value]
