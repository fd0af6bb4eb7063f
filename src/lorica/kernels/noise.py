"""Dropout as a function: every mask element is Philox-4x32-10 of where it is, never of what ran before.

    counter = (channel // 4, position, row, site)      key = (seed, step)      element = word[channel % 4]

The same element is dropped under any micro-batching, packing, recomputation or resume.
Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from dataclasses import dataclass
from zlib import crc32

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Ten rounds of Philox-4x32.  counter: four int64 tensors of uint32 values, broadcastable; so is the result."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]  # wraps in int64; bits 32..63 survive the wrap
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def site_id(name: str) -> int:
    """The uint32 under which a site draws its masks."""
    return crc32(name.encode())


@dataclass(frozen=True)
class Noise:
    """Where each token of a forward pass stands in the training run.

    rows       (N,) int64   row of the data set: one per token (flat layout) or one per batch row
    positions  (N,) int64   position in its document; None when the input carries its own middle dimensions
    """

    seed: int
    step: int
    rows: Tensor
    positions: Tensor | None = None

    def keep(self, p: float, site: int, like: Tensor) -> Tensor:
        """Mask for `like` (N, ..., width): 0 where dropped with probability p, else 1 / (1 - p), in `like.dtype`."""
        width = like.shape[-1]
        rows, positions = self._places(like)
        blocks = torch.arange((width + 3) // 4, device=like.device)
        place = (blocks[None, :], positions[:, None], rows[:, None] & _MASK, torch.tensor(site, device=like.device))
        words = torch.stack(torch.broadcast_tensors(*philox(place, (self.seed & _MASK, self.step & _MASK))), dim=-1)
        words = words.flatten(1)[:, :width].reshape(like.shape)
        return (words >= int(p * 2**32)).to(like.dtype).mul_(1.0 / (1.0 - p))

    def _places(self, like: Tensor) -> tuple[Tensor, Tensor]:
        if self.positions is not None:
            return self.rows, self.positions
        batch = like.shape[0]
        middle = like.numel() // max(1, batch * like.shape[-1])
        rows = self.rows.repeat_interleave(batch // len(self.rows)) if batch >= len(self.rows) else self.rows[:1]
        if len(rows) != batch:  # an input folded to (batch * something): every row of it is its own position
            rows = rows[:1].expand(batch)
            positions = torch.arange(batch * middle, device=like.device)
        else:
            positions = torch.arange(middle, device=like.device).repeat(batch)
        return rows.repeat_interleave(middle), positions
