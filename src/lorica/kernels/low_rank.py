"""LowRank: what a method of the LoRA family hands to a fused path, and the plain definition of what it computes.

    y = c_base * (W x) + bias  +  c_drop * (W d)  +  s * c_out * B (c_mid * A (c_in * d)) + bias_B
    d = dropout(x)

Every c is a vector or absent (1; c_drop absent means 0).  LoRA has none of them, DoRA c_base and c_out (c_drop with
dropout), VeRA c_mid and c_out, AdaLoRA c_mid.
"""

from collections.abc import Callable
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
        return self.dropping(noise)(x)

    @property
    def stretched(self) -> bool:
        """One gain on the sum of both products, and no other."""
        others = (self.bias, self.input, self.middle, self.dropped_base)
        return self.base is not None and self.base is self.output and all(gain is None for gain in others)

    def dropping(self, noise: Noise | None) -> Callable[[Tensor], Tensor]:
        """`drop` as a function of x alone, to be called again: a mask is never kept."""
        if noise is None or not self.dropout:
            return lambda x: x
        dropout, site = self.dropout, self.site
        return lambda x: x * noise.keep(dropout, site, x)

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


class _Stretched(torch.autograd.Function):
    """y = z + (gain - 1) z + bias for z = x W^T + s (x A^T) B^T; saves x, the (T, r) middle and z."""

    @staticmethod
    def forward(ctx, x, A, B, gain, scale, weight, bias):  # type: ignore[override]
        flat = x.reshape(-1, x.shape[-1])
        middle = flat @ A.T
        y = weight.product(x, bias).reshape(-1, B.shape[0])
        y.addmm_(middle, B.T, alpha=scale)
        z = y if bias is None else y - bias
        ctx.save_for_backward(flat, middle, A, B, gain, z)
        ctx.scale, ctx.weight, ctx.shape = scale, weight, x.shape
        return torch.addcmul(y, z, (gain - 1).to(y.dtype)).view(*x.shape[:-1], B.shape[0])

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        flat, middle, A, B, gain, z = ctx.saved_tensors
        wants_x, wants_A, wants_B, wants_gain = ctx.needs_input_grad[:4]
        grad = grad.reshape(-1, grad.shape[-1])
        grad_gain = (grad * z).sum(0, dtype=gain.dtype) if wants_gain else None
        grad = grad * gain.to(grad.dtype)
        inner = (grad @ B).mul_(ctx.scale)
        grad_x = ctx.weight.transposed_product(grad).addmm_(inner, A).view(ctx.shape) if wants_x else None
        grad_A = inner.T @ flat if wants_A else None
        grad_B = (middle.T @ grad).mul_(ctx.scale).T if wants_B else None
        return grad_x, grad_A, grad_B, grad_gain, None, None, None


class _FrozenA(torch.autograd.Function):
    """_Fused with A frozen: of the input only its (T, r) product with A is saved.  Masks are drawn again for the
    gradient of x."""

    @staticmethod
    def forward(ctx, x, A, B, scale, weight, bias, drop):  # type: ignore[override]
        middle = drop(x).reshape(-1, x.shape[-1]) @ A.T
        y = weight.product(x, bias).reshape(-1, B.shape[0])
        y.addmm_(middle, B.T, alpha=scale)
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
        grad_B = (middle.T @ grad).mul_(ctx.scale).T if wants_B else None
        return grad_x, None, grad_B, None, None, grad.sum(0) if wants_bias else None, None


def low_rank_linear(
    x: Tensor, weight: FrozenWeight, bias: Tensor | None, low_rank: LowRank, noise: Noise | None = None
) -> Tensor:
    """`reference`, by hand-written gradients where the LowRank is plain or stretched, with a trained bias only beside a
    frozen A.

    A and B are cast to x.dtype (they are small); x is never cast.
    """
    frozen = low_rank.plain and not low_rank.A.requires_grad
    stretched = low_rank.stretched and (noise is None or not low_rank.dropout)
    trains_bias = bias is not None and bias.requires_grad
    if not (low_rank.plain or stretched) or (trains_bias and not frozen):
        return reference(x, weight, bias, low_rank, noise)
    A, B = low_rank.A.to(x.dtype), low_rank.B.to(x.dtype)
    if stretched:
        return _Stretched.apply(x, A, B, low_rank.base, low_rank.scale, weight, bias)  # type: ignore[return-value]
    if frozen:
        return _FrozenA.apply(x, A, B, low_rank.scale, weight, bias, low_rank.dropping(noise))  # type: ignore
    if noise is None or not low_rank.dropout:
        return _FusedShared.apply(x, A, B, low_rank.scale, weight, bias)  # type: ignore[return-value]
    return _Fused.apply(x, low_rank.drop(x, noise), A, B, low_rank.scale, weight, bias)  # type: ignore[return-value]
