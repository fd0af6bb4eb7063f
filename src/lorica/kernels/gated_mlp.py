"""The gated MLP with low-rank products beside its three linears, as one function.

    h = silu(g) * u        g, u = siblings(x)        y = h W^T + s (h A^T) B^T

Kept are x, g, u and the (T, r) middles; h and silu(g) are made again in the backward pass.  The products before a gain
are g and u divided by it; that of `down` is kept.  Shazeer 2020, arXiv:2002.05202.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from lorica.kernels.choice import is_recast
from lorica.kernels.low_rank_linear import alone, siblings
from lorica.kernels.noise import Noise
from lorica.kernels.siblings import Branch, Group, factors, gradients, outputs
from lorica.kernels.swiglu import swiglu, swiglu_backward_, swiglu_backward_summed_


def reference(x: Tensor, gate: Branch, up: Branch, down: Branch, noise: Noise | None = None) -> Tensor:
    """The definition, branch by branch.  x (..., d) -> (..., d)."""
    h = nn.functional.silu(alone(x, gate, noise)) * alone(x, up, noise)
    return alone(h, down, noise)


def gated_mlp(x: Tensor, gate: Branch, up: Branch, down: Branch, noise: Noise | None = None) -> Tensor:
    """`reference`, as one function where all three branches fuse, and no gain is zero."""
    branches = (gate, up, down)
    fuses = all(branch.low_rank and branch.fuses(noise) for branch in branches) and gate.divides and up.divides
    if not fuses or any(is_recast(x, branch.weight.dtype) for branch in branches):
        g, u = siblings(x, (gate, up), noise)
        (y,) = siblings(swiglu(g, u), (down,), noise)
        return y
    return _GatedMLP.apply(x, branches, *factors(branches))  # type: ignore[return-value]


class _GatedMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, branches, *given):  # type: ignore[override]
        outer, down = Group.of(branches[:2], given[:6], x.dtype), Group.of(branches[2:], given[6:], x.dtype)
        of_outer = outputs(outer, x, with_products=False)
        g, u = of_outer.outputs
        of_down = outputs(down, swiglu(g, u), with_products=True)
        (y,), (z,) = of_down.outputs, of_down.products
        flat, kept = x.reshape(-1, x.shape[-1]), (*outer.tensors, *down.tensors)
        ctx.save_for_backward(flat, of_outer.middles, g, u, of_down.middles, z, *kept)
        ctx.branches, ctx.shape = branches, x.shape
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        flat, m, g, u, m_down, z, *kept = ctx.saved_tensors
        outer, rest = Group.again(ctx.branches[:2], kept)
        down, _ = Group.again(ctx.branches[2:], rest)
        of_down = gradients(down, (grad.reshape(-1, grad.shape[-1]),), m_down, (z,), of_x=True)
        assert of_down.x is not None
        of_x = ctx.needs_input_grad[0]
        gained = any(part.gain is not None for part in outer.parts)
        biased = any(part.branch.bias is not None for part in outer.parts)
        if gained and not biased:
            *grads, h, sums = swiglu_backward_summed_(of_down.x, g, u)
            of_outer = replace(gradients(outer, grads, m, (None, None), of_x=of_x), of_gains=sums)
        else:
            *grads, h = swiglu_backward_(of_down.x, g, u)
            of_outer = gradients(outer, grads, m, (g, u), of_x=of_x)
        of_outer = of_outer.divided
        grad_x = None if of_outer.x is None else of_outer.x.view(ctx.shape)
        return grad_x, None, *of_outer.factors(flat), *of_down.factors(h)
