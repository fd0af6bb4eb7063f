"""combine: several adapters on one base become one, their deltas weighed: W' - W = sum over t of w_t s_t B_t A_t.

    exact       the concatenation of all factors along the rank, w_t s_t in B: the blend itself
    svd         the best product of rank r for it, from the factors alone
    ties, dare, dare_ties, magnitude
                deltas pruned and joined entry by entry (`pruning.py`), then cut to rank r

The sum of the A and the sum of the B would be another thing: its product has every B times every A.  Adapters are
joined site by site; where one has no edit, it has no say.  `error` is || made - blend || / || blend ||, Frobenius norms
of what the file holds.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorica.adapter.deltas import Delta, Deltas, deltas
from lorica.adapter.file import AdapterFile
from lorica.adapter.lineage import Parent
from lorica.adapter.pruning import dropped, elected, summed, trimmed
from lorica.adapter.rebuilt import by_module
from lorica.adapter.spectra import Product, Spectrum, together
from lorica.errors import AdapterError, LoricaError, did_you_mean
from lorica.site import Site

HOWS = ("exact", "svd", "ties", "dare", "dare_ties", "magnitude")
DENSITY = 0.5


@dataclass(frozen=True, kw_only=True)
class How:
    """How adapters are combined.

    name        one of HOWS
    r           rank of the result; None: at each site the largest that goes in
    density     share of the entries that pruning keeps; None: 0.5
    seed        of the entries that are dropped
    """

    name: str = "exact"
    r: int | None = None
    density: float | None = None
    seed: int = 0

    @property
    def prunes(self) -> bool:
        return self.name not in ("exact", "svd")

    @property
    def kept(self) -> float:
        return DENSITY if self.density is None else self.density

    def problems(self) -> Iterator[str]:
        """What is wrong with the request."""
        if self.name not in HOWS:
            yield f"how: {self.name!r} is none of {', '.join(HOWS)}{did_you_mean(self.name, HOWS)}"
        elif self.name == "exact" and self.r is not None:
            yield "r: an exact blend has the sum of all ranks; leave it out, or say how='svd' (--how svd)"
        elif not self.prunes and self.density is not None:
            yield f"density: {self.name} prunes nothing; leave it out"
        if self.r is not None and self.r < 1:
            yield f"r: {self.r}; use 1 or more"
        if not 0 < self.kept <= 1:
            yield f"density: {self.kept:g}; use more than 0, and at most 1"

    def to_dict(self) -> dict[str, Any]:
        pruning = {"density": self.kept, "seed": self.seed} if self.prunes else {}
        return {"how": self.name, "r": self.r, **pruning}


@dataclass(frozen=True, eq=False)
class Weighed:
    """One adapter of a blend."""

    file: AdapterFile
    weight: float
    deltas: Deltas

    @property
    def parent(self) -> Parent:
        return Parent(self.file.digest, self.file.where, self.weight)


@dataclass(frozen=True, eq=False, kw_only=True)
class Joined:
    """One site of the result.

    made    what the file holds
    norm    of the exact blend, || E ||_F
    off     || made - E ||_F
    energy  share of the squared norm of what was cut to `made.rank` that is left
    """

    site: Site
    made: Product
    norm: float
    off: float
    energy: float

    @property
    def error(self) -> float:
        return relative(self.off, self.norm)


def relative(off: float, norm: float) -> float:
    """Zero where there was nothing to miss: adapters that cancel each other at a site leave nothing there."""
    return off / norm if norm else 0.0


def weighed(
    files: Sequence[AdapterFile], weights: Sequence[float], *, untrained: bool = False, other_base: bool = False
) -> tuple[Weighed, ...]:
    """The adapters with their deltas.  AdapterError with every reason why these cannot be one."""
    problems, parts = list(() if other_base else base_problems(files)), list[Weighed]()
    for file, weight in zip(files, weights, strict=True):
        try:
            parts.append(Weighed(file, weight, deltas(file, untrained=untrained)))
        except LoricaError as error:
            problems += str(error).splitlines()
    problems += shape_problems(parts)
    if problems:
        raise AdapterError.of(problems)
    return tuple(parts)


@torch.no_grad()
def joined(parts: Sequence[Weighed], how: How) -> tuple[Joined, ...]:
    """The result, site by site, of rank 0 where nothing is left.  AdapterError where that is so everywhere."""
    names = by_module(dict.fromkeys(name for part in parts for name in part.deltas))
    found = tuple(_joined([part for part in parts if name in part.deltas], name, how) for name in names)
    if not any(each.made.rank for each in found):
        raise AdapterError("combine: nothing is left, these adapters cancel each other; choose other weights")
    return found


def _joined(parts: Sequence[Weighed], name: str, how: How) -> Joined:
    blend = _blend(parts, name)
    cut, energy = _made(parts, name, how, blend)
    made = cut.stored()
    norm, off = blend.norm(), together([made, blend.times(-1)]).norm()
    return Joined(site=parts[0].deltas[name].site, made=made, norm=norm, off=off, energy=energy)


def _blend(parts: Sequence[Weighed], name: str) -> Product:
    """sum over t of w_t s_t B_t A_t; of rank 0 where they cancel each other to rounding."""
    held = [part.deltas[name].product.times(part.weight) for part in parts]
    blend = together(held)
    rounding = torch.finfo(blend.A.dtype).eps * max(blend.shape) * sum(each.norm() for each in held)
    return blend if blend.norm() > rounding else blend.first(0)


def _made(parts: Sequence[Weighed], name: str, how: How, blend: Product) -> tuple[Product, float]:
    """The product that stands for the blend, and the energy that its rank keeps."""
    if how.name == "exact" or not blend.rank:
        return blend, 1.0
    r = how.r or max(part.deltas[name].product.rank for part in parts)
    spectrum = Spectrum.leading(_pruned(parts, name, how), r) if how.prunes else blend.spectrum()
    kept = min(r, spectrum.rank)
    return spectrum.cut(kept), spectrum.energy(kept)


Prune = Callable[[Tensor, Weighed, str, How], Tensor]
Join = Callable[[Sequence[Tensor], Sequence[float]], Tensor]


def _trim(delta: Tensor, part: Weighed, name: str, how: How) -> Tensor:
    return trimmed(delta, how.kept)


def _drop(delta: Tensor, part: Weighed, name: str, how: How) -> Tensor:
    """What is dropped follows from the seed, the adapter and the site: no order changes it."""
    digest = hashlib.sha256(f"{how.seed}:{part.file.digest or part.file.where}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
    return dropped(delta, how.kept, generator)


PRUNING: Mapping[str, tuple[Prune, Join]] = {
    "ties": (_trim, elected),
    "dare": (_drop, summed),
    "dare_ties": (_drop, elected),
    "magnitude": (_trim, summed),
}


def _pruned(parts: Sequence[Weighed], name: str, how: How) -> Tensor:
    """The deltas of one site, dense, as one: 8 bytes for each entry of each adapter's weight."""
    prune, join = PRUNING[how.name]
    dense = [prune(part.deltas[name].product.dense(), part, name, how) for part in parts]
    return join(dense, [part.weight for part in parts])


def base_problems(files: Sequence[AdapterFile]) -> Iterator[str]:
    """Why the adapters are not certainly on one base."""
    for number, file in enumerate(files):
        reasons = (reason for before in files[:number] if (reason := _apart(before, file)))
        if reason := next(reasons, None):
            yield f"{file.where}: {reason}; choose adapters of one base, or say other_base=True (--other-base)"


def _apart(one: AdapterFile, other: AdapterFile) -> str | None:
    first, second = _base(one), _base(other)
    if first.get("hashed") and first.get("hashed") == second.get("hashed"):
        here, there = (str(each.get("fingerprint")) for each in (second, first))
        return None if here == there else f"its base has the fingerprint {here[:12]}, that of {one.where} {there[:12]}"
    if one.base and other.base and one.base != other.base:
        return f"it names the base {other.base}, and {one.where} {one.base}; no fingerprints tell that they are one"
    return None


def _base(file: AdapterFile) -> Mapping[str, Any]:
    facts = (file.manifest or {}).get("base")
    return facts if isinstance(facts, Mapping) else {}


def shape_problems(parts: Sequence[Weighed]) -> Iterator[str]:
    """Sites that two adapters know under one name and with other shapes."""
    known: dict[str, tuple[Delta, str]] = {}
    for part in parts:
        for name, delta in part.deltas.items():
            before, where = known.setdefault(name, (delta, part.file.where))
            if _form(before) != _form(delta):
                forms = f"{_form(delta)} here, {_form(before)} in {where}"
                yield f"{part.file.where}: {name} is {forms}; they differ in base"


def _form(delta: Delta) -> str:
    return f"{delta.site.kind} {' x '.join(map(str, delta.site.shape))}"


def total_error(sites: Sequence[Joined]) -> float:
    """Of all sites as one vector."""
    return relative(math.hypot(*(each.off for each in sites)), math.hypot(*(each.norm for each in sites)))


def total_energy(sites: Sequence[Joined]) -> float:
    """Mean of the sites' energies, weighted by the squared norm that was cut."""
    cut = [each.made.norm() ** 2 / each.energy if each.energy else 0.0 for each in sites]
    kept = [each.energy * whole for each, whole in zip(sites, cut, strict=True)]
    return sum(kept) / sum(cut) if sum(cut) else 1.0
