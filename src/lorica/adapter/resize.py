"""resize: an adapter of other ranks, the best there is at each: s B A cut to its r leading singular triplets.

    B = Q_B R_B,  A^T = Q_A R_A;  U S V^T = R_B R_A^T;      B' = Q_B U S^1/2,  A' = S^1/2 V^T Q_A^T,  alpha' = r'

Of each site the rank is r, or the least that keeps a share of the energy, the sum of the squared singular values.  A
site with fewer singular values than r keeps what it has.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lorica.adapter.combine import relative
from lorica.adapter.deltas import Delta, Deltas
from lorica.adapter.spectra import Product, together
from lorica.errors import AdapterError
from lorica.site import Site


@dataclass(frozen=True, kw_only=True)
class Size:
    """Either `r`, a rank for every site, or `energy`, the share of it that every site keeps."""

    r: int | None = None
    energy: float | None = None

    def problems(self) -> Iterator[str]:
        if (self.r is None) == (self.energy is None):
            yield "say a rank or a share of energy, one of the two: r=4 (--r 4), or energy=0.99 (--energy 0.99)"
        if self.r is not None and self.r < 1:
            yield f"r: {self.r}; use 1 or more"
        if self.energy is not None and not 0 < self.energy <= 1:
            yield f"energy: {self.energy:g}; use more than 0, and at most 1"

    def to_dict(self) -> dict[str, Any]:
        return {"r": self.r} if self.energy is None else {"energy": self.energy}


@dataclass(frozen=True, eq=False, kw_only=True)
class Cut:
    """One site: what is left of its delta, its whole spectrum, and how far it moved.

    before  singular values that were there;  energy: share of their squares that is left
    norm    || s B A ||_F before;  off: of the difference to what the file now holds
    """

    site: Site
    made: Product
    before: int
    spectrum: tuple[float, ...]
    energy: float
    norm: float
    off: float

    @property
    def error(self) -> float:
        return relative(self.off, self.norm)


@torch.no_grad()
def resized(deltas: Deltas, size: Size) -> tuple[Cut, ...]:
    """Every site that has a delta.  AdapterError where none has."""
    cuts = tuple(_cut(delta, size) for delta in deltas.values() if delta.product.rank)
    if not cuts:
        raise AdapterError("resize: every update is zero, so there is nothing to cut; train the adapter first")
    return cuts


def _cut(delta: Delta, size: Size) -> Cut:
    spectrum, before = delta.product.spectrum(), delta.product
    r = size.r if size.energy is None else spectrum.rank_with(size.energy)
    assert r is not None
    made = spectrum.cut(max(1, min(r, spectrum.rank))).stored()
    return Cut(
        site=delta.site,
        made=made,
        before=spectrum.rank,
        spectrum=tuple(spectrum.values[: spectrum.rank].tolist()),
        energy=spectrum.energy(made.rank),
        norm=before.norm(),
        off=together([made, before.times(-1)]).norm(),
    )


def energy_kept(cuts: Sequence[Cut]) -> float:
    """Of all sites as one vector."""
    return sum(cut.energy * cut.norm**2 for cut in cuts) / sum(cut.norm**2 for cut in cuts)


def total_error(cuts: Sequence[Cut]) -> float:
    return relative(math.hypot(*(cut.off for cut in cuts)), math.hypot(*(cut.norm for cut in cuts)))
