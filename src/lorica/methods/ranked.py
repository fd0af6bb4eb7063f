"""Ranks: what methods share whose module at a layer has a rank r and a scale s = alpha / r of its own.

`rank_pattern` and `alpha_pattern` map the name of a module, or its end after a dot, to its own r or alpha, as in PEFT.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import Field

from lorica.errors import did_you_mean
from lorica.methods import peft_config
from lorica.methods.contract import Edit
from lorica.methods.on_layers import OnLayers
from lorica.methods.targets import ends
from lorica.site import Site

T = TypeVar("T")
LARGEST_RANK = 2**31 - 1
"""Beyond it the sizes of a module overflow before anything is compared with the layer."""
PATTERNS = ("rank_pattern", "alpha_pattern")


class Ranked(OnLayers):
    """`r` (8) and `alpha` (16), and patterns of them."""

    translated: ClassVar[Mapping[str, str]] = {"r": "r", "alpha": "alpha"}
    peft_alpha: ClassVar[float] = 8
    """PEFT's default, of a config that leaves alpha out."""

    r: int = Field(8, ge=1, le=LARGEST_RANK)
    alpha: float = Field(16.0, gt=0)
    rank_pattern: dict[str, Annotated[int, Field(le=LARGEST_RANK)]] = Field(default_factory=dict)
    alpha_pattern: dict[str, float] = Field(default_factory=dict)

    def rank(self, site: Site) -> int:
        return from_pattern(self.rank_pattern, site.name, self.r)

    def alpha_of(self, site: Site) -> float:
        return from_pattern(self.alpha_pattern, site.name, self.alpha)

    def scale(self, site: Site) -> float:
        return self.alpha_of(site) / self.rank(site)

    def note(self, edit: Edit) -> str:
        return f"r={self.rank(edit.site)} s={self.scale(edit.site):g}" if edit.place == "around" else ""

    def problems(self, adapted: list[Site], sites: tuple[Site, ...]) -> list[str]:
        too_small = [
            f"r: {self.rank(site)} at {site.name}, use 1 to {min(site.shape)}"
            for site in adapted
            if self.rank(site) < 1
        ]
        return [*self._pattern_problems(adapted), *too_small]

    def wasteful(self, edits: Iterable[Edit]) -> list[str]:
        return [
            f"r: {self.rank(site)} is beyond {site.name} {site.shape}, use 1 to {min(site.shape)}"
            for site in (edit.site for edit in edits if edit.place == "around")
            if self.rank(site) > min(site.shape)
        ]

    def _pattern_problems(self, adapted: list[Site]) -> list[str]:
        leaves = {site.leaf for site in adapted}
        names = {end for site in adapted for end in ends(site.name)}
        patterns = {field: getattr(self, field) for field in PATTERNS}
        return [
            f"{field}: {key!r} matches no adapted site{did_you_mean(key, leaves)}"
            for field, pattern in patterns.items()
            for key in pattern
            if key not in names
        ]

    def rank_entries(self, edits: Iterable[Edit]) -> dict[str, Any]:
        """The part of PEFT's config that says the ranks."""
        names = {edit.site.name for edit in edits if edit.place == "around"}
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


def from_pattern(pattern: Mapping[str, T], name: str, default: T) -> T:
    """The first entry that matches, as PEFT takes it."""
    found = {end for end in ends(name) if end in pattern}
    return next((value for key, value in pattern.items() if key in found), default) if found else default


def plain_number(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value


def _needed(pattern: Mapping[str, T], names: Collection[str]) -> dict[str, T]:
    used = {end for name in names for end in ends(name) if end in pattern}
    return {key: value for key, value in pattern.items() if key in used}
