"""inspect: what an adapter folder holds, from its files alone; no base is loaded.

norm of a site's update = || s B A ||_F, from the small products: trace((B^T B) (A A^T)) under the root
spectrum                  the singular values of s B A, from the small core of its factors (`spectra.py`)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorica.adapter.card import cut_short
from lorica.adapter.deltas import factors_of
from lorica.adapter.fetch import folder_of
from lorica.adapter.file import TENSORS, read
from lorica.adapter.lineage import Lineage
from lorica.adapter.proof import Proof, recorded
from lorica.adapter.ranks import RankGrid
from lorica.adapter.rebuilt import Rebuilt, in_order, rebuilt
from lorica.adapter.spectra import Product, as_one, effective_rank

UNVERIFIED = "unverified: no lorica.json, written by others"
SHOWN = 4
"""Singular values of a site that the table has room for."""


@dataclass(frozen=True, kw_only=True)
class SiteUpdate:
    """One adapted place: shape of its weight, what the method says of it (rank, scale), parameters, norm of update.

    norm is None for a tensor that is saved whole: the base, which it differs from, is not at hand.  kept: singular
    values that are not zero, of a method that chooses them.  singular_values, descending, and effective_rank (exp of
    the entropy of their shares) of an update that is a product; of experts over all of them.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    note: str
    parameters: int
    norm: float | None
    kept: int | None = None
    singular_values: tuple[float, ...] | None = None
    effective_rank: float | None = None

    def to_dict(self) -> dict[str, Any]:
        spectrum = {"singular_values": list(self.singular_values or ()), "effective_rank": self.effective_rank}
        return {
            "name": self.name,
            "kind": self.kind,
            "shape": list(self.shape),
            "note": self.note,
            "parameters": self.parameters,
            "norm": self.norm,
            **({} if self.kept is None else {"kept": self.kept}),
            **({} if self.singular_values is None else spectrum),
        }

    def cells(self) -> tuple[str, ...]:
        """A line of the table."""
        return (
            self.name,
            " x ".join(map(str, self.shape)),
            self.note,
            f"{self.parameters:,}",
            "" if self.norm is None else f"{self.norm:.4g}",
            "" if self.effective_rank is None else f"{self.effective_rank:.1f}",
            largest(self.singular_values or ()),
        )


def largest(values: Sequence[float]) -> str:
    """The largest few singular values, and whether there are more."""
    shown = " ".join(f"{value:.3g}" for value in values[:SHOWN])
    return f"{shown} ..." if len(values) > SHOWN else shown


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What `lorica inspect` shows."""

    folder: str
    methods: tuple[str, ...]
    sites: tuple[SiteUpdate, ...]
    bytes: int
    base: str | None
    lineage: Lineage
    manifest: Mapping[str, Any] | None

    @property
    def trained_parameters(self) -> int:
        return sum(site.parameters for site in self.sites)

    def to_dict(self) -> dict[str, Any]:
        manifest = self.manifest or {}
        return {
            "folder": self.folder,
            "methods": list(self.methods),
            "trained_parameters": self.trained_parameters,
            "bytes": self.bytes,
            "base": manifest.get("base") or {"source": self.base},
            "parents": list(manifest.get("parents") or ()),
            "lineage": self.lineage.to_dict(),
            "verified": self.manifest is not None,
            "effect": self.effect,
            "metrics": manifest.get("metrics"),
            "cut_short": manifest.get("cut_short"),
            "data": manifest.get("data"),
            "versions": manifest.get("versions"),
            "sites": [site.to_dict() for site in self.sites],
        }

    @property
    def effect(self) -> float | None:
        """How far the recorded outputs moved, relative to the largest; None where none were recorded."""
        proof = recorded(self.manifest)
        return proof.effect if isinstance(proof, Proof) else None

    def __str__(self) -> str:
        checked = "hashes agree with lorica.json" if self.manifest is not None else UNVERIFIED
        moved = "" if self.effect is None else f", outputs moved {self.effect:.2%}"
        lines = [
            f"{self.folder}: {' + '.join(self.methods)}, {len(self.sites)} sites, "
            f"{self.trained_parameters:,} parameters, {self.bytes / 1e6:.2f} MB ({checked})",
            f"  base {self.base or 'not named'}{moved}",
        ]
        tree = ["  made from", *(f"  {line}" for line in self.lineage.lines())] if self.lineage.parents else []
        ranks = [] if self.ranks is None else [f"  {line}" for line in str(self.ranks).splitlines()]
        cut = [f"  {line}" for line in cut_short(self.manifest or {})]
        return "\n".join([*lines, *cut, *_table(self.sites), *ranks, *_metrics(self.manifest), *tree])

    @property
    def ranks(self) -> RankGrid | None:
        """Where the rank went; None for methods that give every site its own."""
        kept = {site.name: site.kept for site in self.sites if site.kept is not None}
        return RankGrid.of(kept) if kept else None


def inspect(source: str | Path) -> Inspection:
    """Reads and checks an adapter folder or hub id.  AdapterError as `load` gives it, base aside."""
    file = read(source)
    folder = folder_of(source)
    return Inspection(
        folder=str(source),
        methods=tuple(method.kind for method in file.methods),
        sites=tuple(sorted(map(_update, rebuilt(file)), key=lambda site: in_order(site.name))),
        bytes=(folder / TENSORS).stat().st_size,
        base=file.base,
        lineage=Lineage.of(folder, str(source)),
        manifest=file.manifest,
    )


def update_norm(A: Tensor, B: Tensor, scale: float) -> float:
    """|| s B A ||_F for A (..., r, d_in), B (..., d_out, r), in float64; the product itself is never made."""
    A, B = A.double(), B.double()
    return abs(scale) * math.sqrt(max(0.0, float(((B.mT @ B) * (A @ A.mT)).sum())))


@torch.no_grad()
def _update(part: Rebuilt) -> SiteUpdate:
    site, module, factors = part.site, part.module, factors_of(part)
    S = None if factors is None else Product.of(factors).singular_values()
    return SiteUpdate(
        name=site.name,
        kind=site.kind,
        shape=site.shape,
        note=part.method.note(part.edit),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        norm=None if factors is None else update_norm(factors.A, factors.B, factors.scale),
        kept=getattr(module, "kept", None),
        singular_values=None if S is None else tuple(as_one(S).tolist()),
        effective_rank=None if S is None else effective_rank(S),
    )


HEADINGS = ("site", "shape", "", "parameters", "norm of update", "effective rank", "singular values")
PADS = (str.ljust, str.rjust, str.ljust, str.rjust, str.rjust, str.rjust, str.ljust)


def _table(sites: Sequence[SiteUpdate]) -> list[str]:
    """Columns that no site has anything for are left out."""
    lines = [site.cells() for site in sites]
    used = [column for column in range(len(HEADINGS)) if column < 5 or any(line[column] for line in lines)]
    cells = [tuple(line[column] for column in used) for line in (HEADINGS, *lines)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(used))]
    pads = [PADS[column] for column in used]
    return [
        "  " + "  ".join(pad(cell, width) for pad, cell, width in zip(pads, row, widths, strict=True)).rstrip()
        for row in cells
    ]


def _metrics(manifest: Mapping[str, Any] | None) -> list[str]:
    metrics = (manifest or {}).get("metrics")
    if not isinstance(metrics, Mapping):
        return []
    return ["  " + ", ".join(f"{name} {value}" for name, value in metrics.items() if not isinstance(value, Mapping))]
