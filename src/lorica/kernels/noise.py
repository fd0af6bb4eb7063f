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
CACHED = 1 << 14
"""Words of a counter that are computed at one time on CPU: ten rounds over more leave the cache and take three times
as long."""


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Ten rounds of Philox-4x32.  counter: four int64 tensors of uint32 values, broadcastable; so is the result."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    c0, c1, c2, c3 = (part.clone() for part in torch.broadcast_tensors(*counter))
    for _ in range(10):
        p0, p1 = c0.mul_(_MULTIPLIERS[0]), c2.mul_(_MULTIPLIERS[1])  # wraps in int64; bits 32..63 survive the wrap
        high0, high1 = (p0 >> 32).bitwise_and_(_MASK), (p1 >> 32).bitwise_and_(_MASK)
        c0, c2 = high1.bitwise_xor_(c1.bitwise_xor_(k0)), high0.bitwise_xor_(c3.bitwise_xor_(k1))
        c1, c3 = p1.bitwise_and_(_MASK), p0.bitwise_and_(_MASK)
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
        rows, positions = self._places(like)
        flat = torch.empty(len(rows), like.shape[-1], dtype=like.dtype, device=like.device)
        step = max(1, CACHED * 4 // max(1, like.shape[-1])) if like.device.type == "cpu" else max(1, len(rows))
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            flat[part] = self._kept(p, site, rows[part], positions[part], like.shape[-1])
        return flat.mul_(1.0 / (1.0 - p)).view(like.shape)

    def _kept(self, p: float, site: int, rows: Tensor, positions: Tensor, width: int) -> Tensor:
        """(tokens, width), False where dropped."""
        blocks = torch.arange((width + 3) // 4, device=rows.device)
        place = (blocks[None, :], positions[:, None], rows[:, None] & _MASK, torch.tensor(site, device=rows.device))
        words = philox(place, (self.seed & _MASK, self.step & _MASK))
        return torch.stack([word >= int(p * 2**32) for word in words], dim=-1).flatten(1)[:, :width]

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
