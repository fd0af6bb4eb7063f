"""LoRA: y = W x + s B A dropout(x).        Hu et al. 2021, arXiv:2106.09685, section 4.1

A (r, d_in) starts random, B (d_out, r) starts at zero, so training starts at the base.  s = alpha / r, or
alpha / sqrt(r) with rsLoRA (Kalajdzievski 2023, arXiv:2312.03732), in the forward pass and in the merge.
On an embedding (rows, d) the roles swap: A (r, rows) starts at zero, B (d, r) random, and A is looked up by column.
Convolutions are in `lora_conv.py`, weights of experts in `lora_experts.py`.
"""

import math
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from lorica.errors import AdapterError, TargetError
from lorica.kernels import LowRank, site_id
from lorica.methods import peft_parts, presets, starts, token_rows
from lorica.methods.contract import AroundLinear, Build, Copy, Edit, Flow, Instead, Keeps, Start
from lorica.methods.lora_conv import LoRAConv
from lorica.methods.lora_experts import LoRAExperts
from lorica.methods.peft_keys import PREFIX
from lorica.methods.ranked import Ranked, plain_number
from lorica.methods.starts import Kaiming, Moved
from lorica.methods.statistic import Adapted, Statistic
from lorica.methods.token_rows import TokenRows, Tokens
from lorica.site import Kind, Site


class LoRA(Ranked):
    """Low-rank adaptation of linears (and embeddings, convolutions and experts named in `target_modules`).

    r, alpha        rank and numerator of the scale, 8 and 16
    dropout         probability, on the input of A alone
    target_modules  preset, list of names or glob; see `lorica.methods.targets`
    bias            which of the base's biases are trained too: none, lora_only (those of adapted layers) or all
    rank_pattern, alpha_pattern     name of a module, or its end after a dot, to its own r or alpha
    ramp            {from: 4, to: 16}: r from the first block to the last, which becomes a rank_pattern
    modules_to_save modules trained in full and saved whole, such as a new head
    trainable_token_indices     tokens whose rows of the input embedding, and of what is tied to it, are trained;
                    a mapping names other embeddings, such as an untied head
    init            of A and B: kaiming (U(-1/sqrt(d_in), 1/sqrt(d_in)), as the authors' code), gaussian (std 1/r),
                    pissa, olora, eva, lora_ga or loftq; with options {name: eva, rho: 1}; see `lorica.methods.starts`
    rslora          s = alpha / sqrt(r)

    `preset: small | medium | large` stands for the numbers of a size; what is written beside it counts more.
    """

    kind: ClassVar[str] = "lora"
    peft_type: ClassVar[str | None] = "LORA"
    peft_names: ClassVar[Mapping[str, str]] = {
        "lora_alpha": "write alpha",
        "lora_dropout": "write dropout",
        "use_rslora": "write rslora",
        "use_dora": "write method: dora (lorica.DoRA)",
        "init_lora_weights": "write init: kaiming, gaussian, pissa, olora, eva, lora_ga or loftq",
        "rank": "write r",
        "fan_in_fan_out": "leave it out, it is read off the layer",
        "task_type": "leave it out, the task is named in the recipe",
        "exclude_modules": "name what is adapted in target_modules",
        "layers_to_transform": "name what is adapted in target_modules, a glob such as 'model.layers.[0-7].*'",
    }

    kinds: ClassVar[tuple[Kind, ...]] = ("linear", "embedding", "conv", "experts")
    keys: ClassVar[Mapping[str, str]] = {
        "A": ".lora_A.weight",
        "B": ".lora_B.weight",
        "embedding_A": ".lora_embedding_A",
        "embedding_B": ".lora_embedding_B",
    }
    translated: ClassVar[Mapping[str, str]] = {
        "r": "r",
        "lora_alpha": "alpha",
        "lora_dropout": "dropout",
        "bias": "bias",
        "use_rslora": "rslora",
    }
    understood: ClassVar[frozenset[str]] = frozenset(
        {
            "rank_pattern",
            "alpha_pattern",
            "target_parameters",
            "trainable_token_indices",
            "init_lora_weights",
            "eva_config",
            "lora_ga_config",
            "loftq_config",
        }
    )

    dropout: float = Field(0.0, ge=0, lt=1)
    bias: Literal["none", "all", "lora_only"] = "none"
    trainable_token_indices: Tokens | dict[str, Tokens] = ()
    init: starts.Start = Kaiming()
    rslora: bool = False

    @classmethod
    def preset(cls, name: str, **fields: Any) -> "LoRA":
        """A size by name, `small`, `medium` or `large`, with any field changed: `LoRA.preset("small", r=4)`."""
        return cls(**{**presets.preset(name).fields(), **fields})

    @model_validator(mode="before")
    @classmethod
    def _sized(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or "preset" not in values:
            return values
        rest = {key: value for key, value in values.items() if key != "preset"}
        return {**presets.preset(values["preset"]).fields(), **rest}

    def around(self, site: Site) -> Build:
        module = MovedLinear if self.init.moves and site.kind == "linear" else MODULES[site.kind]
        return lambda start: module(self, site, start)

    def edits(self, sites: tuple[Site, ...], statistics: Mapping[str, Any] | None = None) -> tuple[Edit, ...]:
        edits, saved = super().edits(sites, statistics), self.saved_sites(sites)
        rows, _ = token_rows.chosen(self.trainable_token_indices, sites)
        adapted = {edit.site.name for edit in edits if edit.place == "around"}
        biases = [site for site in sites if self._trains_bias(site, adapted) and site not in saved]
        copies = (Instead(site, Copy) for site in biases)
        return (*edits, *copies, *(Instead(site, partial(TokenRows, tokens)) for site, tokens in rows))

    def problems(self, adapted: list[Site], sites: tuple[Site, ...]) -> list[str]:
        rows, problems = token_rows.chosen(self.trainable_token_indices, sites)
        saved = self.saved_sites(sites)
        twice = [f"{site.name}: modules_to_save trains all of its rows already" for site, _ in rows if site in saved]
        started = [
            f"{site.name}: init {self.init.kind} starts linears that are called alone; choose kaiming or gaussian, or "
            "leave it out"
            for site in adapted
            if (site.kind != "linear" and not self.init.embeddings) or (site.part_of and self.init.reads)
        ]
        linears = [Adapted(site, self.rank(site)) for site in adapted if site.kind == "linear"]
        return [*problems, *super().problems(adapted, sites), *twice, *started, *self.init.problems(linears)]

    def statistic(self, sites: tuple[Site, ...]) -> Statistic | None:
        return self.init.statistic([Adapted(site, self.rank(site)) for site in self.adapted(sites)])

    def given(self, sites: tuple[Site, ...], statistics: Mapping[str, Tensor]) -> Self:
        """Where the start reads inputs, the rank of each layer is that of its A, and a layer without one is left out;
        alpha keeps its ratio to the rank."""
        if self.init.reads != "inputs" or not statistics:
            return self
        before = self.adapted(sites)
        ranks = {site.name: len(statistics[f"{site.name}.A"]) for site in before if f"{site.name}.A" in statistics}
        kept = [site for site in before if site.name in ranks]
        alphas = {site.name: self.alpha_of(site) * ranks[site.name] / self.rank(site) for site in kept}
        named = {} if len(kept) == len(before) else {"target_modules": tuple(ranks)}
        return self.model_copy(update={"rank_pattern": ranks, "alpha_pattern": alphas, **named})

    def finished(self) -> Self:
        """Its start no longer matters; one that was subtracted has become half of an adapter of twice the rank, whose
        alpha is such that the scale stays."""
        if not self.init.moves:
            return self if self.init.embeddings else self.model_copy(update={"init": Kaiming()})
        more = math.sqrt(2) if self.rslora else 2
        changed = {
            "init": Kaiming(),
            "r": 2 * self.r,
            "alpha": more * self.alpha,
            "rank_pattern": {key: 2 * r for key, r in self.rank_pattern.items()},
            "alpha_pattern": {key: more * alpha for key, alpha in self.alpha_pattern.items()},
        }
        return self.model_copy(update=changed)

    def wasteful(self, edits: Iterable[Edit]) -> list[str]:
        edits = tuple(edits)
        parts = [edit.site for edit in edits if edit.place == "around" and edit.site.part_of]
        if not parts or not self.dropout:
            return super().wasteful(edits)
        leaves = ", ".join(sorted({site.leaf for site in parts}))
        dropped = (
            f"dropout: {parts[0].part_of} reads its weights itself, so what enters A cannot be dropped there; set "
            f"dropout: 0, or leave {leaves} out of target_modules"
        )
        return [*super().wasteful(edits), dropped]

    def scale(self, site: Site) -> float:
        r = self.rank(site)
        return self.alpha_of(site) / (math.sqrt(r) if self.rslora else r)

    def kept_at(self, site: Site) -> Keeps:
        return Keeps(inputs=True, numbers=(2 if self.init.moves else 1) * self.rank(site), fuses=True)

    def note(self, edit: Edit) -> str:
        return f"{len(edit.build.args[0])} rows" if isinstance(edit.build, partial) else super().note(edit)

    def remarks(self, sites: tuple[Site, ...]) -> tuple[str, ...]:
        dealt = all(site.name in self.rank_pattern for site in self.adapted(sites))
        remark = "" if dealt else self.init.remark(self.adapted(sites))
        rows = token_rows.remarks(self.trainable_token_indices, sites)
        return (*rows, *self.left_out(sites), *([remark] if remark else []))

    def advice(self) -> str:
        tune = " (rsLoRA: lower it as r grows)" if self.rslora else ""
        return f"learning rate for LoRA: start at {presets.LEARNING_RATE}{tune}"

    def _trains_bias(self, site: Site, adapted: Container[str]) -> bool:
        if site.kind != "parameter" or site.leaf != "bias" or self.bias == "none":
            return False
        return self.bias == "all" or site.owner in adapted

    def file_name(self, edit: Edit, parameter: str, around: Mapping[str, Sequence[str]]) -> str:
        if isinstance(edit.build, partial):
            return f"{PREFIX}{edit.site.name.rpartition('.')[0]}{token_rows.SUFFIX}"
        return super().file_name(edit, self._part(edit.site, parameter), around)

    @staticmethod
    def _part(site: Site, parameter: str) -> str:
        return f"embedding_{parameter}" if site.kind == "embedding" else parameter

    @classmethod
    def site_name(cls, key: str) -> str:
        if key.endswith(token_rows.SUFFIX):
            return key.removeprefix(PREFIX).removesuffix(token_rows.SUFFIX) + ".weight"
        return super().site_name(key)

    @classmethod
    def parameter_name(cls, key: str) -> str:
        return super().parameter_name(key).replace(".token_adapter.", ".")

    def peft_problems(self, edits: tuple[Edit, ...]) -> list[str]:
        adapted = {edit.site.name: edit.site for edit in edits if edit.place == "around"}
        return [problem for site in adapted.values() if (problem := self._peft_problem(site, adapted))]

    def _peft_problem(self, site: Site, adapted: Mapping[str, Site]) -> str | None:
        if site.groups > 1:
            return f"{site.name}: PEFT's adapter of a convolution with groups is no weight of one"
        if site.kind != "linear" or not site.bare:
            return None
        other = adapted.get(site.part_of + peft_parts.OUT)
        if site.leaf != "in_proj_weight" or other is None:
            return f"{site.name}: PEFT adapts nn.MultiheadAttention as a whole, where all widths are one"
        parts = (site, other, replace(site, name=site.part_of, part_of=""))
        if len({(self.rank(part), self.scale(part)) for part in parts}) > 1:
            return f"{site.part_of}: PEFT has one rank and one alpha for the whole of an nn.MultiheadAttention"
        return None

    def peft_config(self, edits: tuple[Edit, ...], sites: tuple[Site, ...]) -> dict[str, Any]:
        return {
            **self.where_entries(edits, sites),
            **self.rank_entries(edits),
            "lora_alpha": plain_number(self.alpha),
            "lora_dropout": self.dropout,
            "bias": self.bias,
            "trainable_token_indices": token_rows.listed(self.trainable_token_indices),
            "init_lora_weights": self.init.peft(),
            "use_rslora": self.rslora,
            "fan_in_fan_out": any(edit.site.transposed and edit.site.kind == "linear" for edit in edits),
        }

    def site_of_file(self, name: str, shapes: Mapping[str, tuple[int, ...]]) -> Site | None:
        rows = next((shape for key, shape in shapes.items() if key.endswith(token_rows.SUFFIX)), None)
        if rows is not None:
            return Site(
                name=name, kind="parameter", shape=(token_rows.least_rows(self.trainable_token_indices), rows[1])
            )
        ends = {key.rpartition(".lora_")[2]: shape for key, shape in shapes.items() if ".lora_" in key}
        if not ends:
            return super().site_of_file(name, shapes)
        if {"A.weight", "B.weight"} <= ends.keys():
            key = next(key for key in shapes if key.endswith(self.keys["A"]))
            path = key.removeprefix(PREFIX).removesuffix(self.keys["A"])
            return self._site_of_pair(name, path, ends["A.weight"], ends["B.weight"])
        if {"embedding_A", "embedding_B"} <= ends.keys():
            return Site(name=name, kind="embedding", shape=(ends["embedding_A"][-1], ends["embedding_B"][0]))
        raise AdapterError(f"{name}: half of a low-rank pair is missing from the file")

    def _site_of_pair(self, name: str, path: str, A: tuple[int, ...], B: tuple[int, ...]) -> Site:
        """path: under which the file has it, which is not the name where a module reads its weights itself."""
        under = A[1:]
        if len(under) > 1:
            return Site(name=name, kind="conv", shape=(B[0], *under))
        owner = name.rpartition(".")[0]
        bare = owner == path.replace(peft_parts.WITHIN, "")
        if not bare or name.endswith(peft_parts.IN):
            return Site(name=name, kind="linear", shape=(B[0], A[-1]))
        each = max(1, self.rank(Site(name=name, kind="experts")))
        return Site(name=name, kind="experts", shape=(A[0] // each, B[0], A[-1]), part_of=owner, bare=True)

    @classmethod
    def where_of_config(cls, given: Mapping[str, Any], sites: tuple[Site, ...]) -> tuple[dict[str, Any], list[str]]:
        ours, problems = super().where_of_config(given, sites)
        if parameters := peft_parts.listed(given):
            modules, strange = peft_parts.beside(given, ours["target_modules"], sites)
            ours["target_modules"], problems = (*modules, *parameters), [*problems, *strange]
        init, strange = starts.of_peft(given)
        problems += strange
        if init is None:
            remedy = f"start from {', '.join(starts.STARTS)}"
            problems.append(f"init_lora_weights: {given['init_lora_weights']!r} has no counterpart here; {remedy}")
        return {**ours, "init": init, "trainable_token_indices": given.get("trainable_token_indices") or ()}, problems

    @classmethod
    def where_of_file(cls, given: Mapping[str, Any], keys: Collection[str]) -> tuple[dict[str, Any], list[str]]:
        rows = [cls.site_name(key).removesuffix(".weight") for key in keys if key.endswith(token_rows.SUFFIX)]
        layers = [key for key in keys if not key.endswith(token_rows.SUFFIX)]
        ours, problems = super().where_of_file(given, layers)
        if str(given.get("init_lora_weights")).partition("_niter_")[0] in MOVES_THE_BASE:
            remedy = "convert it in PEFT with path_initial_model_for_weight_conversion"
            problems.append(f"init_lora_weights: {given['init_lora_weights']!r} changed the base itself; {remedy}")
        if given.get("ensure_weight_tying"):  # the config names one of the modules that are saved
            whole = (key for key in layers if key.endswith(".weight") and ".base_layer." not in key)
            more = {key.removeprefix(PREFIX).rpartition(".")[0] for key in whole if not cls.end_of(key)}
            ours["modules_to_save"] = tuple(sorted({*ours["modules_to_save"], *more}))
        tokens = token_rows.placed(given.get("trainable_token_indices"), rows)
        return {**ours, "trainable_token_indices": tokens}, problems


MOVES_THE_BASE = frozenset({"pissa", "olora", "corda", "loftq", "lora_ga"})


class LoRALinear(AroundLinear):
    def __init__(self, config: LoRA, site: Site, start: Start) -> None:
        super().__init__()
        if config.init.moves:
            raise TargetError(f"init: {config.kind} cannot start from {config.init.kind}; lora can")
        self.init = config.init
        self.A, self.B = config.init.pair(site, config.rank(site), config.scale(site), start)
        dropout = 0.0 if site.part_of else config.dropout  # what enters A is never seen there
        self.scale, self.dropout, self.site = config.scale(site), dropout, site_id(site.name)

    def start(self) -> dict[str, Tensor]:
        """What a checkpoint has to hold beside the parameters."""
        return self.init.kept(self.A.detach(), self.B.detach())

    def low_rank(self) -> LowRank:
        return LowRank(A=self.A, B=self.B, scale=self.scale, dropout=self.dropout, site=self.site)

    def merged(self, W: Tensor) -> Tensor:
        return torch.addmm(W, self.B.to(W.dtype), self.A.to(W.dtype), alpha=self.scale)


class MovedLinear(LoRALinear):
    """W' = W + s (B A - B0 A0) = W + s [B - B0, B0] [A; A - A0]: LoRA of twice the rank.

    At the start both differences are zero, and so is every term of the product, to the bit in any order and type;
    [B, -B0] [A; A0] would round.  A0 and B0 stay as they are.
    """

    A0: Tensor
    B0: Tensor

    def __init__(self, config: LoRA, site: Site, start: Start) -> None:
        AroundLinear.__init__(self)
        assert isinstance(config.init, Moved)
        A, B = config.init.factors(site, config.rank(site), config.scale(site), start)
        self.A, self.B = nn.Parameter(A), nn.Parameter(B)
        self.register_buffer("A0", A.clone(), persistent=False)
        self.register_buffer("B0", B.clone(), persistent=False)
        self.scale, self.dropout, self.site = config.scale(site), config.dropout, site_id(site.name)

    def finished(self) -> dict[str, Tensor]:
        return {"A": torch.cat([self.A, self.A - self.A0]), "B": torch.cat([self.B - self.B0, self.B0], dim=1)}

    def start(self) -> dict[str, Tensor]:
        return {"A": self.A0, "B": self.B0}

    def low_rank(self) -> LowRank:
        both = self.finished()
        return LowRank(A=both["A"], B=both["B"], scale=self.scale, dropout=self.dropout, site=self.site)

    def merged(self, W: Tensor) -> Tensor:
        both = self.finished()
        return torch.addmm(W, both["B"].to(W.dtype), both["A"].to(W.dtype), alpha=self.scale)


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

    def factors(self) -> LowRank:
        """W'^T - W^T = s B A: an embedding is stored as (rows, d)."""
        return LowRank(A=self.A, B=self.B, scale=self.scale)

    def merged(self, W: Tensor) -> Tensor:
        return W + self.scale * (self.B.to(W.dtype) @ self.A.to(W.dtype)).T

    def forward(self, ids: Tensor, base: nn.Module, flow: Flow) -> Tensor:
        """Some families' embeddings multiply what they look up; what is added to the rows is multiplied with them."""
        y = base(ids)
        rows = nn.functional.embedding(ids, self.A.T.to(y.dtype))
        return y + self.scale * getattr(base, "embed_scale", 1.0) * (rows @ self.B.T.to(y.dtype))


MODULES: Mapping[str, Callable[[LoRA, Site, Start], nn.Module]] = {
    "linear": LoRALinear,
    "embedding": LoRAEmbedding,
    "conv": LoRAConv,
    "experts": LoRAExperts,
}
