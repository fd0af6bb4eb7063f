"""The gated MLP with low-rank products beside its three linears, as one function.

    h = silu(g) * u        g, u = siblings(x)        y = h W^T + s (h A^T) B^T

Kept are x, g, u and the (T, r) middles; h and silu(g) are made again in the backward pass.  The products before a gain
are g and u divided by it, and that of `down` is made again.  Shazeer 2020, arXiv:2002.05202.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lorica.kernels.low_rank_linear import alone, siblings
from lorica.kernels.noise import Noise
from lorica.kernels.siblings import (
    Branch,
    Part,
    factor_gradients,
    factors,
    inner_gradients,
    input_gradient,
    parts_of,
    stacked,
)
from lorica.kernels.swiglu import swiglu, swiglu_backward_


def reference(x: Tensor, gate: Branch, up: Branch, down: Branch, noise: Noise | None = None) -> Tensor:
    """The definition, branch by branch.  x (..., d) -> (..., d)."""
    h = nn.functional.silu(alone(x, gate, noise)) * alone(x, up, noise)
    return alone(h, down, noise)


def gated_mlp(x: Tensor, gate: Branch, up: Branch, down: Branch, noise: Noise | None = None) -> Tensor:
    """`reference`, as one function where all three branches fuse, and no gain is zero."""
    branches = (gate, up, down)
    if not all(branch.low_rank and branch.fuses(noise) for branch in branches) or not all(map(_divides, (gate, up))):
        g, u = siblings(x, (gate, up), noise)
        (y,) = siblings(swiglu(g, u), (down,), noise)
        return y
    return _GatedMLP.apply(x, branches, *factors(branches, x.dtype))  # type: ignore[return-value]


def _divides(branch: Branch) -> bool:
    gain = None if branch.low_rank is None else branch.low_rank.output
    return gain is None or bool(gain.all())


class _GatedMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, branches, *given):  # type: ignore[override]
        outer, (down,) = parts_of(branches[:2], given[:6]), parts_of(branches[2:], given[6:])
        flat = x.reshape(-1, x.shape[-1])
        m = stacked(outer) @ flat.T
        g, u = (part.gained(part.product(x, m)) for part in outer)
        h = swiglu(g, u)
        m_down = stacked((down,)) @ h.T
        y = down.gained(down.product(h, m_down))
        ctx.save_for_backward(flat, m, g, u, m_down, *given)
        ctx.branches, ctx.shape = branches, x.shape
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        flat, m, g, u, m_down, *given = ctx.saved_tensors
        outer, (down,) = parts_of(ctx.branches[:2], given[:6]), parts_of(ctx.branches[2:], given[6:])
        grad = grad.reshape(-1, grad.shape[-1])
        before = grad if down.gain is None else grad * down.gain.to(grad.dtype)
        inner = inner_gradients((down,), (before,))
        *grads, h = swiglu_backward_(input_gradient((down,), (before,), inner, stacked((down,))), g, u)
        _, of_gain = down.before_gain(grad, None if down.gain is None else down.product(h, m_down))
        of_down = factor_gradients((down,), (before,), inner, h, m_down, (of_gain,))
        return *_outer_gradients(ctx, outer, grads, (g, u), flat, m), *of_down


def _outer_gradients(
    ctx: torch.autograd.function.FunctionCtx,
    outer: Sequence[Part],
    grads: Sequence[Tensor],
    outputs: Sequence[Tensor],
    x: Tensor,
    m: Tensor,
) -> tuple[Tensor | None, ...]:
    """Of x, of the branches themselves (None), and of the factors of gate and up."""
    pairs = [_before_gain(part, grad, y) for part, grad, y in zip(outer, grads, outputs, strict=True)]
    grads, gains = [grad for grad, _ in pairs], [gain for _, gain in pairs]
    inner = inner_gradients(outer, grads)
    wanted = ctx.needs_input_grad[0]  # type: ignore[attr-defined]
    grad_x = input_gradient(outer, grads, inner, stacked(outer)).view(ctx.shape) if wanted else None  # type: ignore
    return grad_x, None, *factor_gradients(outer, grads, inner, x, m, gains)


def _before_gain(part: Part, grad: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
    """Of y after the gain, which is the gain times the product that the gradient of the gain is of."""
    grad, of_gain = part.before_gain(grad, y)
    return grad, None if of_gain is None or part.gain is None else of_gain / part.gain
