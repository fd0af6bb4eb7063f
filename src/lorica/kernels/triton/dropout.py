# pyright: reportMissingImports=false, reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
"""The dropout masks of `kernels/noise.py` drawn inside a kernel, element for element the same.

counter = (channel // 4, position, row, site)      key = (seed, step)      element = word[channel % 4]
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from lorica.kernels.noise import Noise

_MASK = 0xFFFFFFFF


@dataclass(frozen=True, eq=False)
class Mask:
    """What a kernel draws the mask of an input (T, d) from: (T,) int64 rows and positions, three words, a threshold
    below which a channel is dropped, and what a kept one is multiplied with."""

    rows: Tensor
    positions: Tensor
    seed: int
    step: int
    site: int
    threshold: int
    kept: float

    @classmethod
    def of(cls, noise: Noise, p: float, site: int, like: Tensor) -> "Mask":
        """The mask that `noise.keep(p, site, like)` is."""
        rows, positions = noise._places(like)
        # rounded as `keep` rounds it to the type of the input
        kept = float(torch.ones((), dtype=like.dtype).mul_(1.0 / (1.0 - p)))
        return cls(rows & _MASK, positions, noise.seed & _MASK, noise.step & _MASK, site, int(p * 2**32), kept)

    @property
    def words(self) -> tuple[Tensor, Tensor, int, int, int, int, float]:
        return self.rows, self.positions, self.seed, self.step, self.site, self.threshold, self.kept


@triton.jit
def keep(row, position, first, seed, step, site, threshold, kept, WIDTH: tl.constexpr):
    """(T, WIDTH) float32 for rows and positions (T,) and the channels from `first` on, which four divides."""
    block = (first // 4 + tl.arange(0, WIDTH // 4)).to(tl.uint32)
    zero = tl.zeros((row.shape[0], WIDTH // 4), dtype=tl.uint32)
    w0, w1, w2, w3 = tl.philox_impl(
        zero + block[None, :],
        zero + position.to(tl.uint32)[:, None],
        zero + row.to(tl.uint32)[:, None],
        zero + tl.cast(site, tl.uint32),
        tl.cast(seed, tl.uint32),
        tl.cast(step, tl.uint32),
        10,
    )
    words = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
    return tl.where(words >= tl.cast(threshold, tl.uint32), kept, 0.0)
