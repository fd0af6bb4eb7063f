"""inspect: what an adapter folder holds, from its files alone; no base is loaded.

norm of a site's update = || s B A ||_F, from the small products: trace((B^T B) (A A^T)) under the root
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorica.adapter.fetch import folder_of
from lorica.adapter.file import TENSORS, AdapterFile, read
from lorica.adapter.lineage import Lineage
from lorica.adapter.plan import key_marks
from lorica.adapter.proof import Proof, recorded
from lorica.adapter.ranks import RankGrid
from lorica.adapter.tensors import refusal
from lorica.errors import AdapterError, LoricaError
from lorica.kernels import DenseWeight, LowRank
from lorica.methods import Method, peft_parts
from lorica.methods.contract import Edit, Start, neighbours, stored
from lorica.site import Site

UNVERIFIED = "unverified: no lorica.json, written by others"


@dataclass(frozen=True, kw_only=True)
class SiteUpdate:
    """One adapted place: shape of its weight, what the method says of it (rank, scale), parameters, norm of update.

    norm is None for a tensor that is saved whole: the base, which it differs from, is not at hand.  kept: singular
    values that are not zero, of a method that chooses them.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    note: str
    parameters: int
    norm: float | None
    kept: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": self.kind,
            "shape": list(self.shape),
            "note": self.note,
            "parameters": self.parameters,
            "norm": self.norm,
            **({} if self.kept is None else {"kept": self.kept}),
        }


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
        return "\n".join([*lines, *_table(self.sites), *ranks, *_metrics(self.manifest), *tree])

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
        sites=tuple(_sites(file)),
        bytes=(folder / TENSORS).stat().st_size,
        base=file.base,
        lineage=Lineage.of(folder, str(source)),
        manifest=file.manifest,
    )


def update_norm(A: Tensor, B: Tensor, scale: float) -> float:
    """|| s B A ||_F for A (..., r, d_in), B (..., d_out, r), in float64; the product itself is never made."""
    A, B = A.double(), B.double()
    return abs(scale) * math.sqrt(max(0.0, float(((B.mT @ B) * (A @ A.mT)).sum())))


def _sites(file: AdapterFile) -> list[SiteUpdate]:
    parts = list(zip(file.methods, _tensors_of_methods(file), strict=True))
    found = [
        (edit, method, tensors)
        for method, tensors in parts
        for edit in method.edits_of_file(
            tuple(peft_parts.with_owners(tuple(_sites_of_tensors(method, tensors, file.config))))
        )
    ]
    around = neighbours(edit.site.name for edit, _, _ in found if edit.place == "around")
    shared: dict[int, dict[str, nn.Module]] = {id(method): {} for method in file.methods}
    updates = (
        _update(edit, method, tensors, around, shared[id(method)], file.where) for edit, method, tensors in found
    )
    return sorted(updates, key=lambda s: _in_order(s.name))


def _tensors_of_methods(file: AdapterFile) -> Iterator[Mapping[str, Tensor]]:
    """The tensors of each method by its own keys."""
    for method, mark in zip(file.methods, key_marks(file.methods), strict=True):
        own = {key.removeprefix(mark): tensor for key, tensor in file.tensors.items() if key.startswith(mark)}
        try:
            yield method.unpacked(own, file.config, method.numbered_sites(file.config)) if file.peft else own
        except LoricaError as error:
            raise refusal(file.where, str(error).splitlines()) from error


def _in_order(name: str) -> list[tuple[int, str]]:
    """Layer 2 before layer 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]


def _sites_of_tensors(method: Method, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Iterator[Site]:
    """Shapes are read off the tensors."""
    located = method.located(tensors, config)
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for key in sorted(tensors, key=lambda key: -key.count(".base_layer.")):  # inner parts come first in a base
        if not method.surplus(key):
            shapes.setdefault(method.site_name(located[key]), {})[key] = tuple(tensors[key].shape)
    for name, held in shapes.items():
        if (site := method.site_of_file(name, held)) is not None:
            yield site


def _update(
    edit: Edit,
    method: Method,
    tensors: Mapping[str, Tensor],
    around: Mapping[str, Sequence[str]],
    shared: dict[str, nn.Module],
    where: str,
) -> SiteUpdate:
    site = edit.site
    blank = torch.zeros(site.shape)
    weight = DenseWeight(blank) if edit.place == "around" else None
    start = Start(torch.Generator(), torch.device("cpu"), torch.float32, weight, blank, shared=shared)
    module = edit.build(start)
    held = {name: tensors.get(method.file_name(edit, name, around)) for name in stored(module)}
    missing = [name for name, tensor in held.items() if tensor is None]
    if missing:
        raise AdapterError(f"{where}: {site.name} lacks {', '.join(missing)}")
    for name, tensor in stored(module).items():
        tensor.data = held[name].float()  # type: ignore[union-attr]
    return SiteUpdate(
        name=site.name,
        kind=site.kind,
        shape=site.shape,
        note=method.note(edit),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        norm=_norm(module),
        kept=getattr(module, "kept", None),
    )


def _norm(module: nn.Module) -> float | None:
    factors: LowRank | None = module.factors() if hasattr(module, "factors") else None  # type: ignore[operator]
    return None if factors is None else update_norm(factors.A.detach(), factors.B.detach(), factors.scale)


def _table(sites: Sequence[SiteUpdate]) -> list[str]:
    cells = [("site", "shape", "", "parameters", "norm of update")]
    cells += [
        (s.name, " x ".join(map(str, s.shape)), s.note, f"{s.parameters:,}", "" if s.norm is None else f"{s.norm:.4g}")
        for s in sites
    ]
    widths = [max(len(row[column]) for row in cells) for column in range(5)]
    pads = (str.ljust, str.rjust, str.ljust, str.rjust, str.rjust)
    return [
        "  " + "  ".join(pad(cell, width) for pad, cell, width in zip(pads, row, widths, strict=True)).rstrip()
        for row in cells
    ]


def _metrics(manifest: Mapping[str, Any] | None) -> list[str]:
    metrics = (manifest or {}).get("metrics")
    if not isinstance(metrics, Mapping):
        return []
    return ["  " + ", ".join(f"{name} {value}" for name, value in metrics.items() if not isinstance(value, Mapping))]
