"""Ranks: what methods share whose module at a layer has a rank r and a scale s = alpha / r of its own.

`rank_pattern` and `alpha_pattern` map the name of a module, or its end after a dot, to its own r or alpha, as in PEFT.

    ramp {from: a, to: b}       r of block l of L: a + (b - a) l / (L - 1), rounded

A ramp becomes a rank pattern when the base is known.  What a pattern names, and what stands in no block, is not on it.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_serializer

from lorica.errors import TargetError, did_you_mean
from lorica.methods import peft_config, peft_parts
from lorica.methods.contract import Edit
from lorica.methods.on_layers import OnLayers
from lorica.methods.targets import ends
from lorica.site import Site

T = TypeVar("T")
LARGEST_RANK = 2**31 - 1
"""Beyond it the sizes of a module overflow before anything is compared with the layer."""
PATTERNS = ("rank_pattern", "alpha_pattern")


class Ramp(BaseModel):
    """Ranks from the first block to the last: `{from: 4, to: 16}`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: int = Field(alias="from", ge=1, le=LARGEST_RANK)
    last: int = Field(alias="to", ge=1, le=LARGEST_RANK)

    def rank(self, layer: int, layers: int) -> int:
        return round(self.first + (self.last - self.first) * layer / max(1, layers - 1))

    @model_serializer
    def _as_written(self) -> dict[str, int]:
        return {"from": self.first, "to": self.last}


class Ranked(OnLayers):
    """`r` (8) and `alpha` (16), patterns of them, and a ramp of r by depth."""

    translated: ClassVar[Mapping[str, str]] = {"r": "r", "alpha": "alpha"}
    peft_alpha: ClassVar[float] = 8
    """PEFT's default, of a config that leaves alpha out."""

    r: int = Field(8, ge=1, le=LARGEST_RANK)
    alpha: float = Field(16.0, gt=0)
    rank_pattern: dict[str, Annotated[int, Field(le=LARGEST_RANK)]] = Field(default_factory=dict)
    alpha_pattern: dict[str, float] = Field(default_factory=dict)
    ramp: Ramp | None = None

    def resolved(self, sites: tuple[Site, ...]) -> Self:
        if self.ramp is None:
            return self
        layers = _layers(sites)
        inside = [site for site in self.adapted(sites) if site.layer is not None]
        if not inside:
            raise TargetError("ramp: nothing that is adapted stands in a block of this base; write r or rank_pattern")
        ranks = {site.name: self.ramp.rank(site.layer or 0, layers[_stack(site)]) for site in inside}
        named = {name for name in ranks if any(end in self.rank_pattern for end in ends(name))}
        pattern = {**self.rank_pattern, **{name: rank for name, rank in ranks.items() if name not in named}}
        return self.model_copy(update={"rank_pattern": pattern, "ramp": None})

    def rank(self, site: Site) -> int:
        return from_pattern(self.rank_pattern, site.name, self.r, peft_parts.whole(site))

    def alpha_of(self, site: Site) -> float:
        return from_pattern(self.alpha_pattern, site.name, self.alpha, peft_parts.whole(site))

    def scale(self, site: Site) -> float:
        return self.alpha_of(site) / self.rank(site)

    def note(self, edit: Edit) -> str:
        return f"r={self.rank(edit.site)} s={self.scale(edit.site):g}" if edit.place == "around" else ""

    def problems(self, adapted: list[Site], sites: tuple[Site, ...]) -> list[str]:
        too_small = [
            f"r: {self.rank(site)} at {site.name}, use 1 to {min(site.d_in, site.d_out)}"
            for site in adapted
            if self.rank(site) < 1
        ]
        return [*self._pattern_problems(adapted), *too_small]

    def wasteful(self, edits: Iterable[Edit]) -> list[str]:
        return [
            f"r: {self.rank(site)} is beyond {site.name} {site.shape}, use 1 to {min(site.d_in, site.d_out)}"
            for site in (edit.site for edit in edits if edit.place == "around")
            if self.rank(site) > min(site.d_in, site.d_out)
        ]

    def _pattern_problems(self, adapted: list[Site]) -> list[str]:
        leaves = {site.leaf for site in adapted}
        names = {end for site in adapted for name in (site.name, peft_parts.whole(site)) for end in ends(name)}
        patterns = {field: getattr(self, field) for field in PATTERNS}
        return [
            f"{field}: {key!r} matches no adapted site{did_you_mean(key, leaves)}"
            for field, pattern in patterns.items()
            for key in pattern
            if key not in names
        ]

    def rank_entries(self, edits: Iterable[Edit]) -> dict[str, Any]:
        """The part of PEFT's config that says the ranks."""
        around = [edit.site for edit in edits if edit.place == "around"]
        names = {
            site.name for site in (*peft_parts.as_modules(around), *around) if site.kind == "experts" or not site.bare
        }
        alphas = peft_config.unordered(self.alpha_pattern, names)
        return {
            "r": self.r,
            "rank_pattern": peft_config.unordered(self.rank_pattern, names),
            "alpha_pattern": {key: plain_number(alpha) for key, alpha in alphas.items()},
        }

    @classmethod
    def of_fields(cls, given: Mapping[str, Any], ours: Mapping[str, Any], problems: list[str]) -> Self:
        ranks, strange_ranks = peft_config.literal_pattern(given, "rank_pattern")
        alphas, strange_alphas = peft_config.literal_pattern(given, "alpha_pattern")
        missing = {} if any(given.get(theirs) is not None for theirs in cls._alphas()) else {"alpha": cls.peft_alpha}
        ours = {**missing, **ours, "rank_pattern": ranks, "alpha_pattern": alphas}
        return super().of_fields(given, ours, [*problems, *strange_ranks, *strange_alphas])

    @classmethod
    def _alphas(cls) -> list[str]:
        return [theirs for theirs, name in cls.translated.items() if name == "alpha"]

    @classmethod
    def from_file(cls, config: Mapping[str, Any], keys: Collection[str]) -> Self:
        """Entries of patterns that no adapted layer needs are dropped."""
        method = super().from_file(config, keys)
        patterns = {field: _needed(getattr(method, field), method.target_modules) for field in PATTERNS}
        return method.model_copy(update=patterns)


def _layers(sites: Iterable[Site]) -> dict[str, int]:
    """How many blocks each stack of the base has: an encoder and a decoder count their own."""
    depths: dict[str, int] = {}
    for site in sites:
        if site.layer is not None:
            depths[_stack(site)] = max(depths.get(_stack(site), 0), site.layer + 1)
    return depths


def _stack(site: Site) -> str:
    """The path of the list that holds the block."""
    return f".{site.name}.".partition(f".{site.layer}.")[0]


def from_pattern(pattern: Mapping[str, T], name: str, default: T, whole: str = "") -> T:
    """The first entry that matches, as PEFT takes it; `whole` is the module of which the layer is a part."""
    if not pattern:
        return default
    found = {end for path in (name, whole) for end in ends(path) if end in pattern}
    return next((value for key, value in pattern.items() if key in found), default) if found else default


def plain_number(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value


def _needed(pattern: Mapping[str, T], names: Collection[str]) -> dict[str, T]:
    paths = [*names, *(name.removesuffix(peft_parts.IN) for name in names)]
    used = {end for path in paths for end in ends(path) if end in pattern}
    return {key: value for key, value in pattern.items() if key in used}
