"""How several deltas of one weight become one where their entries stand in each other's way: TIES, DARE and pruning.

    pruned    trimmed   the density largest entries by magnitude are kept, all others are zero
              dropped   every entry is kept with the probability density, and divided by it: the expectation stays
    joined    summed    sum_t w_t d_t
              elected   of the entries of one place, those that have the sign of sum_t w_t d_t; their mean, weighted by
                        |w_t|, times the sum of all |w_t|

TIES is trimmed and elected: Yadav et al. 2023, arXiv:2306.01708, algorithm 1.  With equal weights w, `elected` is their
mean over those that agree times the lambda n w; with any weights it is the blend itself where all agree.  They trim
over all weights at once, here each weight by itself, as PEFT does.  DARE is dropped and summed: Yu et al. 2024,
arXiv:2311.03099, section 3.2, their drop rate p being 1 - density.  DARE-TIES is dropped and elected.

Deltas (..., d_out, d_in), leading dimensions being matrices of their own.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def trimmed(delta: Tensor, density: float) -> Tensor:
    """Of each matrix the int(density * entries) largest, at least one."""
    flat = delta.flatten(-2)
    kept = flat.abs().topk(max(1, int(density * flat.shape[-1])), -1).indices
    return torch.zeros_like(flat).scatter(-1, kept, flat.gather(-1, kept)).view_as(delta)


def dropped(delta: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Each entry kept with the probability `density` and divided by it."""
    kept = torch.rand(delta.shape, generator=generator, dtype=torch.float64) < density
    return torch.where(kept, delta / density, 0)


def summed(deltas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    return sum((w * delta for w, delta in zip(weights, deltas, strict=True)), torch.zeros_like(deltas[0]))


def elected(deltas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Zero where no entry is left, and where both signs weigh the same."""
    sign = summed(deltas, weights).sign()
    total, weight = torch.zeros_like(sign), torch.zeros_like(sign)
    for delta, w in zip(deltas, weights, strict=True):
        agrees = ((w * delta).sign() == sign) & (sign != 0)
        total += torch.where(agrees, w * delta, 0)
        weight += agrees.to(weight.dtype) * abs(w)
    return sum(map(abs, weights)) * total / torch.where(weight > 0, weight, 1)
