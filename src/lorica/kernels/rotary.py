"""Rotary position embedding: each pair (x_i, x_(i + E/2)) turned by its token's angle; the gradient is turned back.

    y_i = x_i cos - x_(i + E/2) sin        y_(i + E/2) = x_(i + E/2) cos + x_i sin

Su et al. 2021, arXiv:2104.09864, in the pairing of the Llama checkpoints.
"""

import torch
from torch import Tensor

from lorica.kernels.choice import is_native
from lorica.kernels.native import rotary as native


def reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The definition.  x (T, H, E); cos and sin (T, 1, E), whose halves are equal -> (T, H, E)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def rotary(cos: Tensor, sin: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
    """`reference` of each."""
    if torch.is_grad_enabled():
        return _Rotary.apply(cos, sin, *given)  # type: ignore[return-value]
    return tuple(_turned(x, cos, sin, 1) for x in given)


def _turned(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    if len(cos) == len(sin) == len(x) and is_native("rotary", x, cos, sin):
        return native.turned(x, cos, sin, sign)
    y = x * cos
    (x_first, x_second), (y_first, y_second) = x.chunk(2, dim=-1), y.chunk(2, dim=-1)
    half = sin[..., : x_first.shape[-1]]
    y_first.addcmul_(x_second, half, value=-sign)
    y_second.addcmul_(x_first, half, value=sign)
    return y


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx, cos, sin, *given):  # type: ignore[override]
        ctx.save_for_backward(cos, sin)
        return tuple(_turned(x, cos, sin, 1) for x in given)

    @staticmethod
    def backward(ctx, *grads):  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return None, None, *(_turned(grad, cos, sin, -1) for grad in grads)
