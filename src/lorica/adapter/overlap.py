"""overlap: what two adapters of one base have in common, from their files alone.

    cosine    <D1, D2> / (|| D1 || || D2 ||)                     of the deltas as vectors: 1 the same, -1 the opposite
    phi       || U1^T U2 ||_F^2 / min(r1, r2)                    of the subspaces that their singular vectors span:
                                                                 0 at right angles, 1 one within the other
    angles    arccos of the singular values of U1^T U2           principal angles, the smallest first

phi of the right singular vectors is of what is read (inputs), of the left ones of what is written (outputs): Hu et al.
2021, arXiv:2106.09685, section 7.2, equation 4.  Random subspaces have max(r1, r2) / d in expectation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorica.adapter.combine import Weighed, base_problems, shape_problems
from lorica.adapter.deltas import Deltas, deltas
from lorica.adapter.file import AdapterFile, read
from lorica.adapter.rebuilt import in_order
from lorica.adapter.spectra import Product, Spectrum
from lorica.errors import AdapterError


@dataclass(frozen=True, kw_only=True)
class Subspaces:
    """How far two subspaces coincide: phi, what phi is by chance, and the principal angles in degrees."""

    phi: float
    chance: float
    angles: tuple[float, ...]

    @classmethod
    def of(cls, one: Tensor, other: Tensor) -> "Subspaces":
        """Of orthonormal columns (..., d, r1) and (..., d, r2); the mean over leading dimensions."""
        cosines = torch.linalg.svdvals(one.mT @ other).clamp(max=1)
        ranks = one.shape[-1], other.shape[-1]
        angles = torch.atleast_2d(torch.rad2deg(cosines.acos())).flatten(0, -2).mean(0)
        return cls(
            phi=float(cosines.square().sum(-1).mean()) / min(ranks),
            chance=max(ranks) / one.shape[-2],
            angles=tuple(angles.tolist()),
        )

    def to_dict(self) -> dict[str, Any]:
        return {"phi": self.phi, "chance": self.chance, "angles": list(self.angles)}

    def __str__(self) -> str:
        return f"{self.phi:.3f} ({self.chance:.3f})"


@dataclass(frozen=True, kw_only=True)
class SiteOverlap:
    """One place that both adapters change; ranks are those of the deltas."""

    name: str
    ranks: tuple[int, int]
    cosine: float
    inputs: Subspaces
    outputs: Subspaces

    def to_dict(self) -> dict[str, Any]:
        spaces = {"inputs": self.inputs.to_dict(), "outputs": self.outputs.to_dict()}
        return {"name": self.name, "ranks": list(self.ranks), "cosine": self.cosine, **spaces}

    def cells(self) -> tuple[str, ...]:
        ranks = " ".join(map(str, self.ranks))
        return self.name, ranks, f"{self.cosine:+.3f}", str(self.inputs), str(self.outputs)


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What `lorica inspect A B` shows.  cosine: of all deltas as one vector each, zero where an adapter has none."""

    first: str
    second: str
    cosine: float
    sites: tuple[SiteOverlap, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "first": self.first,
            "second": self.second,
            "cosine": self.cosine,
            "sites": [site.to_dict() for site in self.sites],
            "only_first": list(self.only_first),
            "only_second": list(self.only_second),
        }

    def __str__(self) -> str:
        alone = f"{len(self.only_first)} sites in the first alone, {len(self.only_second)} in the second"
        head = f"{self.first} and {self.second}: cosine {self.cosine:+.3f}, {len(self.sites)} sites in common, {alone}"
        return "\n".join([head, *(_table(self.sites) if self.sites else ())])


HEADINGS = ("site", "ranks", "cosine", "phi of inputs (by chance)", "phi of outputs (by chance)")


def _table(sites: Sequence[SiteOverlap]) -> list[str]:
    rows = [HEADINGS, *(site.cells() for site in sites)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    return [
        "  " + "  ".join(cell.ljust(width) if not at else cell.rjust(width) for at, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in rows)
    ]


def overlap(first: str | Path, second: str | Path, *, other_base: bool = False) -> Overlap:
    """Of two adapter folders or hub ids.  AdapterError where one has edits that are no product, or they are certainly
    on different bases."""
    files = read(first), read(second)
    one, other = _comparable(files, other_base)
    both = sorted(one.keys() & other.keys(), key=in_order)
    return Overlap(
        first=str(first),
        second=str(second),
        cosine=_cosine(one, other),
        sites=tuple(_at(name, one[name].product, other[name].product) for name in both),
        only_first=tuple(sorted(one.keys() - other.keys(), key=in_order)),
        only_second=tuple(sorted(other.keys() - one.keys(), key=in_order)),
    )


def _comparable(files: Sequence[AdapterFile], other_base: bool) -> list[Deltas]:
    """The deltas that are not zero."""
    parts = [Weighed(file, 1.0, deltas(file, untrained=True)) for file in files]
    problems = [*(() if other_base else base_problems(files)), *shape_problems(parts)]
    if problems:
        raise AdapterError.of(problems)
    return [{name: delta for name, delta in part.deltas.items() if delta.product.rank} for part in parts]


def _cosine(one: Deltas, other: Deltas) -> float:
    norms = [math.hypot(*(delta.product.norm() for delta in each.values())) for each in (one, other)]
    dots = math.fsum(one[name].product.dot(other[name].product) for name in one.keys() & other.keys())
    return dots / math.prod(norms) if all(norms) else 0.0


def _at(name: str, one: Product, other: Product) -> SiteOverlap:
    first, second = one.spectrum(), other.spectrum()
    ranks = first.rank, second.rank
    return SiteOverlap(
        name=name,
        ranks=ranks,
        cosine=one.dot(other) / (one.norm() * other.norm()),
        inputs=Subspaces.of(_inputs(first), _inputs(second)),
        outputs=Subspaces.of(_outputs(first), _outputs(second)),
    )


def _inputs(spectrum: Spectrum) -> Tensor:
    return spectrum.Vt[..., : spectrum.rank, :].mT


def _outputs(spectrum: Spectrum) -> Tensor:
    return spectrum.U[..., : spectrum.rank]
