"""LowRank: what a method of the LoRA family hands to a fused path, and the plain definition of what it computes.

    y = c_base * (W x) + bias  +  c_drop * (W d)  +  s * c_out * B (c_mid * A (c_in * d)) + bias_B
    d = dropout(x)

Every c is a vector or absent (1; c_drop absent means 0).  LoRA has none of them, DoRA c_base and c_out (c_drop with
dropout), VeRA c_mid and c_out, AdaLoRA c_mid.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from lorica.kernels.frozen_weight import FrozenWeight
from lorica.kernels.noise import Noise


@dataclass(frozen=True, eq=False, kw_only=True)
class LowRank:
    """A (r, d_in), B (d_out, r); gains: `input` (d_in,), `middle` (r,), `output` (d_out,), `base` (d_out,),
    `dropped_base` (d_out,); `site` is the id under which dropout draws its masks.

    frozen: A is never trained, so that of the input only its product with A is kept for the backward pass.  Said here
    and not read off A, since outputs must be equal to the bit whether anything is trained or not.
    """

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
    frozen: bool = False

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
        y = y + _gain(weight.linear(dropped), low_rank.dropped_base)
    return y


def _gained_product(x: Tensor, weight: FrozenWeight, bias: Tensor | None, gain: Tensor | None) -> Tensor:
    """gain * (W x) + bias, written so that a gain of one leaves the base's own result to the bit."""
    y = weight.linear(x, bias)
    if gain is None:
        return y
    return y + (y if bias is None else y - bias) * (gain - 1).to(x.dtype)


def _gain(x: Tensor, gain: Tensor | None) -> Tensor:
    return x if gain is None else x * gain.to(x.dtype)
