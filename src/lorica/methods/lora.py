"""LoRA: y = W x + s B A dropout(x).        Hu et al. 2021, arXiv:2106.09685, section 4.1

A (r, d_in) starts random, B (d_out, r) starts at zero, so training starts at the base.  s = alpha / r, or
alpha / sqrt(r) with rsLoRA (Kalajdzievski 2023, arXiv:2312.03732), in the forward pass and in the merge.
On an embedding (rows, d) the roles swap: A (r, rows) starts at zero, B (d, r) random, and A is looked up by column.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import Field
from torch import Tensor, nn

from lorica.errors import TargetError, did_you_mean
from lorica.kernels import LowRank, site_id
from lorica.methods.contract import Around, AroundLinear, Build, Copy, Edit, Flow, Instead, Method, Start
from lorica.methods.targets import matches, select
from lorica.site import Site

T = TypeVar("T")


class LoRA(Method):
    """Low-rank adaptation of linears (and embeddings named in `target_modules`).

    r, alpha        rank and numerator of the scale, 8 and 16
    dropout         probability, on the input of A alone
    target_modules  preset, list of names or glob; see `lorica.methods.targets`
    bias            which of the base's biases are trained too: none, lora_only (those of adapted layers) or all
    rank_pattern, alpha_pattern     name of a module, or its end after a dot, to its own r or alpha
    modules_to_save modules trained in full and saved whole, such as a new head
    init            of A: kaiming (U(-1/sqrt(d_in), 1/sqrt(d_in)), as the authors' code) or gaussian (std 1/r)
    rslora          s = alpha / sqrt(r)
    """

    kind: ClassVar[str] = "lora"
    peft_type: ClassVar[str | None] = "LORA"

    r: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: str | tuple[str, ...] = "all-linear"
    bias: Literal["none", "all", "lora_only"] = "none"
    rank_pattern: dict[str, int] = Field(default_factory=dict)
    alpha_pattern: dict[str, float] = Field(default_factory=dict)
    modules_to_save: tuple[str, ...] = ()
    init: Literal["kaiming", "gaussian"] = "kaiming"
    rslora: bool = False

    def edits(self, sites: tuple[Site, ...], statistics: Mapping[str, Any] | None = None) -> tuple[Edit, ...]:
        presets = isinstance(self.target_modules, str)
        chosen = select(sites, self.target_modules, ("linear",) if presets else ("linear", "embedding")).sites
        saved = [site for site in sites if site.kind == "parameter" and self._saves(site)]
        adapted = [site for site in chosen if not any(matches(site.name, name) for name in self.modules_to_save)]
        problems = [*self._pattern_problems(adapted), *self._rank_problems(adapted), *self._save_problems(sites)]
        if problems:
            raise TargetError.of(problems)
        biases = [site for site in sites if self._trains_bias(site, adapted) and site not in saved]
        around: list[Edit] = [Around(site, self._builder(site)) for site in adapted]
        return (*around, *(Instead(site, Copy) for site in (*saved, *biases)))

    def rank(self, site: Site) -> int:
        return _from_pattern(self.rank_pattern, site.name, self.r)

    def scale(self, site: Site) -> float:
        r = self.rank(site)
        return _from_pattern(self.alpha_pattern, site.name, self.alpha) / (math.sqrt(r) if self.rslora else r)

    def _builder(self, site: Site) -> Build:
        module = LoRAEmbedding if site.kind == "embedding" else LoRALinear
        return lambda start: module(self, site, start)

    def _saves(self, site: Site) -> bool:
        module = site.name.rpartition(".")[0]
        return any(matches(module, name) or f".{name}." in f".{module}." for name in self.modules_to_save)

    def _trains_bias(self, site: Site, adapted: list[Site]) -> bool:
        if site.kind != "parameter" or site.leaf != "bias" or self.bias == "none":
            return False
        return self.bias == "all" or site.name.rpartition(".")[0] in {around.name for around in adapted}

    def _pattern_problems(self, adapted: list[Site]) -> list[str]:
        leaves = {site.leaf for site in adapted}
        patterns = {"rank_pattern": self.rank_pattern, "alpha_pattern": self.alpha_pattern}
        return [
            f"{field}: {key!r} matches no adapted site{did_you_mean(key, leaves)}"
            for field, pattern in patterns.items()
            for key in pattern
            if not any(matches(site.name, key) for site in adapted)
        ]

    def _rank_problems(self, adapted: list[Site]) -> list[str]:
        return [
            f"r: {self.rank(site)} is beyond {site.name} {site.shape}, use 1 to {min(site.shape)}"
            for site in adapted
            if not 1 <= self.rank(site) <= min(site.shape)
        ]

    def _save_problems(self, sites: tuple[Site, ...]) -> list[str]:
        modules = {site.name.rpartition(".")[0] for site in sites if site.kind == "parameter"}
        return [
            f"modules_to_save: {name!r} matches no module{did_you_mean(name, {m.rpartition('.')[2] for m in modules})}"
            for name in self.modules_to_save
            if not any(matches(module, name) or f".{name}." in f".{module}." for module in modules)
        ]


def _from_pattern(pattern: Mapping[str, T], name: str, default: T) -> T:
    """The first entry that matches, as PEFT takes it."""
    return next((value for key, value in pattern.items() if matches(name, key)), default)


class LoRALinear(AroundLinear):
    def __init__(self, config: LoRA, site: Site, start: Start) -> None:
        super().__init__()
        r = config.rank(site)
        kaiming = config.init == "kaiming"
        self.A = start.uniform(site.d_in**-0.5, r, site.d_in) if kaiming else start.normal(1 / r, r, site.d_in)
        self.B = start.zeros(site.d_out, r)
        self.scale, self.dropout, self.site = config.scale(site), config.dropout, site_id(site.name)

    def low_rank(self) -> LowRank:
        return LowRank(A=self.A, B=self.B, scale=self.scale, dropout=self.dropout, site=self.site)

    def merged(self, W: Tensor) -> Tensor:
        return W + self.scale * (self.B.to(W.dtype) @ self.A.to(W.dtype))


class LoRAEmbedding(nn.Module):
    def __init__(self, config: LoRA, site: Site, start: Start) -> None:
        super().__init__()
        rows, d = site.shape
        r = config.rank(site)
        self.A = start.zeros(r, rows)
        self.B = start.normal(1.0, d, r)
        self.scale = config.scale(site)

    def low_rank(self) -> None:
        return None

    def merged(self, W: Tensor) -> Tensor:
        return W + self.scale * (self.B.to(W.dtype) @ self.A.to(W.dtype)).T

    def forward(self, ids: Tensor, base: nn.Module, flow: Flow) -> Tensor:
        y = base(ids)
        rows = nn.functional.embedding(ids, self.A.T.to(y.dtype))
        return y + self.scale * (rows @ self.B.T.to(y.dtype))
