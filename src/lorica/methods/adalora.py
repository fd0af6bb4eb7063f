"""AdaLoRA: y = W x + s P (L * Q dropout(x)).        Zhang et al. 2023, arXiv:2303.10512, equation 3

P (d_out, r), L (r, 1), Q (r, d_in) stand for a singular value decomposition, though none is computed: a term of the
loss keeps the columns of P and the rows of Q near orthonormal.  L starts at zero, so training starts at the base; P
and Q are normal with deviation 0.02, as in the authors' code.  s = alpha / r, r the rank at the start: it stays when
singular values go.  `rank_budget` has which of them go.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from lorica.errors import AdapterError, did_you_mean
from lorica.kernels import LowRank, site_id
from lorica.methods.contract import AroundLinear, Build, Edit, Keeps, Life, Role, Start
from lorica.methods.on_layers import OnLayers
from lorica.methods.rank_budget import Allocation, Settings, steps_of
from lorica.methods.ranked import LARGEST_RANK, from_pattern, plain_number
from lorica.methods.targets import ends
from lorica.site import Site

STD = 0.02
STEPS = 1000
"""PEFT's config wants the steps of a run, which a finished adapter has no more use for: shares are written of these."""
STEP_FIELDS = ("tinit", "tfinal")


class AdaLoRA(OnLayers):
    """Low-rank updates that share a budget of singular values: sites that need more keep more.

    r               average rank that is left at the end, 8: the budget is r times the number of sites
    init_r          rank of every site at the start; 1.5 r unless given
    alpha           numerator of the scale alpha / init_r, 16
    dropout         probability, on the input of Q alone
    target_modules  preset, list of names or glob
    modules_to_save modules trained in full and saved whole, such as a new head
    tinit, tfinal   how long all are kept, and for how long what is left is trained on: a share of the run, or steps
    deltaT          steps between two choices
    beta1, beta2    smoothing of sensitivity and uncertainty
    orth_reg_weight gamma, of the term that keeps P and Q orthonormal
    rank_pattern    sites that have another rank than init_r, as in a file whose ranks were cut
    """

    kind: ClassVar[str] = "adalora"
    peft_type: ClassVar[str | None] = "ADALORA"
    peft_names: ClassVar[Mapping[str, str]] = {
        "target_r": "write r",
        "lora_alpha": "write alpha",
        "lora_dropout": "write dropout",
        "total_step": "leave it out, a run knows its steps",
    }
    keys: ClassVar[Mapping[str, str]] = {"P": ".lora_B", "L": ".lora_E", "Q": ".lora_A"}
    translated: ClassVar[Mapping[str, str]] = {
        "target_r": "r",
        "init_r": "init_r",
        "lora_alpha": "alpha",
        "lora_dropout": "dropout",
        "deltaT": "deltaT",
        "beta1": "beta1",
        "beta2": "beta2",
        "orth_reg_weight": "orth_reg_weight",
    }
    understood: ClassVar[frozenset[str]] = frozenset(
        {"r", "tinit", "tfinal", "total_step", "rank_pattern", "bias", "init_lora_weights"}
    )
    peft_alpha: ClassVar[float] = 8

    r: int = Field(8, ge=1, le=LARGEST_RANK)
    init_r: int | None = Field(None, ge=1, le=LARGEST_RANK)
    alpha: float = Field(16.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    tinit: float = Field(0.1, ge=0)
    tfinal: float = Field(0.4, ge=0)
    deltaT: int = Field(1, ge=1)
    beta1: float = Field(0.85, gt=0, lt=1)
    beta2: float = Field(0.85, gt=0, lt=1)
    orth_reg_weight: float = Field(0.1, ge=0)
    rank_pattern: dict[str, Annotated[int, Field(ge=0, le=LARGEST_RANK)]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits_itself(self) -> Self:
        if self.start < self.r:
            raise ValueError(f"init_r: {self.start} is below r, the {self.r} that are left of it; write 1.5 r or more")
        if (broken := next((v for v in (self.tinit, self.tfinal) if v > 1 and not v.is_integer()), None)) is not None:
            raise ValueError(f"tinit, tfinal: {broken} is neither a share below 1 nor a number of steps")
        if self.tinit < 1 and self.tfinal < 1 and self.tinit + self.tfinal >= 1:
            raise ValueError("tinit, tfinal: together they are the whole run; leave a share to choose ranks in")
        return self

    @property
    def start(self) -> int:
        """The rank of a site at the start."""
        return self.init_r or math.ceil(1.5 * self.r)

    def rank(self, site: Site) -> int:
        return from_pattern(self.rank_pattern, site.name, self.start)

    def scale(self) -> float:
        return self.alpha / self.start

    def around(self, site: Site) -> Build:
        return lambda start: AdaLoRALinear(self, site, start)

    def role(self, edit: Edit, parameter: str, shape: tuple[int, ...]) -> Role:
        named: Mapping[str, Role] = {"P": "B", "L": "vector", "Q": "A"}
        return named[parameter] if edit.place == "around" else super().role(edit, parameter, shape)

    def kept_at(self, site: Site) -> Keeps:
        return Keeps(inputs=True, numbers=self.rank(site), fuses=True)

    def note(self, edit: Edit) -> str:
        return f"r={self.rank(edit.site)}, mean {self.r} left, s={self.scale():.4g}" if edit.place == "around" else ""

    def remarks(self, sites: tuple[Site, ...]) -> tuple[str, ...]:
        kept = self.r * len(self.adapted(sites))
        return (f"adalora: r is the rank at the start; {kept} singular values are left in all, where they count most",)

    def advice(self) -> str:
        return "learning rate for AdaLoRA: 5e-4 to 2e-3"

    def problems(self, adapted: list[Site], sites: tuple[Site, ...]) -> list[str]:
        names = {end for site in adapted for end in ends(site.name)}
        leaves = {site.leaf for site in adapted}
        strange = [key for key in self.rank_pattern if key not in names]
        return [
            *(f"rank_pattern: {key!r} matches no adapted site{did_you_mean(key, leaves)}" for key in strange),
            *(
                f"rank_pattern: {rank} at {key} is above init_r ({self.start}), by which the scale divides"
                for key, rank in self.rank_pattern.items()
                if rank > self.start
            ),
        ]

    def wasteful(self, edits: Iterable[Edit]) -> list[str]:
        return [
            f"init_r: {self.rank(site)} is beyond {site.name} {site.shape}, use 1 to {min(site.shape)}"
            for site in (edit.site for edit in edits if edit.place == "around")
            if self.rank(site) > min(site.shape)
        ]

    def life(self, modules: Mapping[str, nn.Module]) -> Life:
        settings = Settings(
            rank=self.r,
            tinit=self.tinit,
            tfinal=self.tfinal,
            every=self.deltaT,
            beta1=self.beta1,
            beta2=self.beta2,
            orthogonality=self.orth_reg_weight,
        )
        return Allocation(settings, {name: m for name, m in modules.items() if isinstance(m, AdaLoRALinear)})

    def unfinished(self, state: Mapping[str, Mapping[str, Tensor]]) -> str | None:
        values = [tensors["L"] for tensors in state.values() if "L" in tensors]
        kept, budget = sum(int(torch.count_nonzero(L)) for L in values), self.r * len(values)
        if kept <= budget:
            return None
        return (
            f"adalora: {kept} singular values are left where the budget is {budget}, so their choice was not made or "
            "not kept to; call attached.life.after_step(step, total) after every optimizer.step(), to the last"
        )

    def peft_config(self, edits: tuple[Edit, ...], sites: tuple[Site, ...]) -> dict[str, Any]:
        total = max(STEPS, 2 * sum(int(v) for v in (self.tinit, self.tfinal) if v >= 1))
        return {
            **self.where_entries(edits, sites),
            "init_r": self.start,
            "target_r": self.r,
            "lora_alpha": plain_number(self.alpha),
            "lora_dropout": self.dropout,
            "total_step": total,
            "tinit": steps_of(self.tinit, total),
            "tfinal": steps_of(self.tfinal, total),
            "deltaT": self.deltaT,
            "beta1": self.beta1,
            "beta2": self.beta2,
            "orth_reg_weight": self.orth_reg_weight,
            "rank_pattern": self._kept_in_peft([edit.site for edit in edits if edit.place == "around"]),
            "bias": "none",
            "init_lora_weights": True,
            "fan_in_fan_out": any(edit.site.transposed for edit in edits if edit.place == "around"),
        }

    def _kept_in_peft(self, adapted: list[Site]) -> dict[str, list[bool]] | None:
        """PEFT cuts its modules from init_r to the True of these."""
        cut = {site.name: self.rank(site) for site in adapted if self.rank(site) < self.start}
        return {f"{name}.lora_E": [i < rank for i in range(self.start)] for name, rank in cut.items()} or None

    def site_of_file(self, name: str, shapes: Mapping[str, tuple[int, ...]]) -> Site | None:
        held = {end: shape for key, shape in shapes.items() if (end := self.end_of(key)) is not None}
        if not held:
            return super().site_of_file(name, shapes)
        if len(held) < len(self.keys):
            raise AdapterError(f"{name}: part of its triplets is missing from the file")
        return Site(name=name, kind="linear", shape=(held[self.keys["P"]][0], held[self.keys["Q"]][-1]))

    @classmethod
    def where_of_config(cls, given: Mapping[str, Any], sites: tuple[Site, ...]) -> tuple[dict[str, Any], list[str]]:
        ours, problems = super().where_of_config(given, sites)
        if given.get("init_lora_weights", True) is False:
            problems.append("init_lora_weights: False starts away from the base, which has no counterpart here")
        return ours, problems

    @classmethod
    def of_fields(cls, given: Mapping[str, Any], ours: Mapping[str, Any], problems: list[str]) -> Self:
        ranks, strange = _ranks(given.get("rank_pattern"))
        if given.get("bias", "none") != "none":
            problems = [*problems, f"bias: {given['bias']!r} has no counterpart here; merge the adapter in PEFT"]
        alpha = {} if given.get("lora_alpha") is not None else {"alpha": cls.peft_alpha}
        ours = {**alpha, **_shares(given), **ours, "rank_pattern": ranks}
        return super().of_fields(given, ours, [*problems, *strange])

    @classmethod
    def from_file(cls, config: Mapping[str, Any], keys: Collection[str]) -> Self:
        """Ranks of sites that no tensor is left of are dropped."""
        method = super().from_file(config, keys)
        ranks = {name: rank for name, rank in method.rank_pattern.items() if name in method.target_modules}
        return method.model_copy(update={"rank_pattern": ranks})


def _shares(given: Mapping[str, Any]) -> dict[str, float]:
    """PEFT counts steps of its `total_step`; what is read may be trained on for any number."""
    total = given.get("total_step")
    steps = {name: given[name] for name in STEP_FIELDS if isinstance(given.get(name), int)}
    if not isinstance(total, int):
        return steps
    return {name: step / total if step < total else step for name, step in steps.items()}


def _ranks(pattern: Any) -> tuple[dict[str, int], list[str]]:
    """PATH.lora_E to which of its singular values were kept, as PEFT writes it; PATH to their number."""
    if pattern is None:
        return {}, []
    if not isinstance(pattern, Mapping):
        return {}, [f"rank_pattern: expected names and what is kept of each, found {pattern!r}"]
    kept = {str(key): value.tolist() if isinstance(value, Tensor) else value for key, value in pattern.items()}
    strange = [key for key, value in kept.items() if not _flags(value) or ".lora_E" not in key]
    ranks = {key.rpartition(".lora_E")[0]: sum(value) for key, value in kept.items() if key not in strange}
    return ranks, [f"rank_pattern: {key!r} is no PATH.lora_E with a list of true and false" for key in strange]


def _flags(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(flag, bool) for flag in value)


class AdaLoRALinear(AroundLinear):
    def __init__(self, config: AdaLoRA, site: Site, start: Start) -> None:
        super().__init__()
        r = config.rank(site)
        self.P, self.L, self.Q = start.normal(STD, site.d_out, r), start.zeros(r, 1), start.normal(STD, r, site.d_in)
        self.scale, self.dropout, self.site = config.scale(), config.dropout, site_id(site.name)

    @property
    def kept(self) -> int:
        """Singular values that are not zero."""
        return int(torch.count_nonzero(self.L))

    def low_rank(self) -> LowRank:
        """With L multiplied into P it is plain LoRA to every fused path: (d_out, r) products more, and no gain."""
        return LowRank(A=self.Q, B=self.P * self.L.T, scale=self.scale, dropout=self.dropout, site=self.site)

    def merged(self, W: Tensor) -> Tensor:
        return torch.addmm(W, (self.P * self.L.T).to(W.dtype), self.Q.to(W.dtype), alpha=self.scale)
