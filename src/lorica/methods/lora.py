"""LoRA: y = W x + s B A dropout(x).        Hu et al. 2021, arXiv:2106.09685, section 4.1

A (r, d_in) starts random, B (d_out, r) starts at zero, so training starts at the base.  s = alpha / r, or
alpha / sqrt(r) with rsLoRA (Kalajdzievski 2023, arXiv:2312.03732), in the forward pass and in the merge.
On an embedding (rows, d) the roles swap: A (r, rows) starts at zero, B (d, r) random, and A is looked up by column.
"""

import math
from collections.abc import Collection, Container, Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from lorica.errors import AdapterError
from lorica.kernels import LowRank, site_id
from lorica.methods import presets, token_rows
from lorica.methods.contract import AroundLinear, Build, Copy, Edit, Flow, Instead, Start
from lorica.methods.peft_keys import PREFIX
from lorica.methods.ranked import Ranked, plain_number
from lorica.methods.token_rows import TokenRows, Tokens
from lorica.site import Kind, Site


class LoRA(Ranked):
    """Low-rank adaptation of linears (and embeddings named in `target_modules`).

    r, alpha        rank and numerator of the scale, 8 and 16
    dropout         probability, on the input of A alone
    target_modules  preset, list of names or glob; see `lorica.methods.targets`
    bias            which of the base's biases are trained too: none, lora_only (those of adapted layers) or all
    rank_pattern, alpha_pattern     name of a module, or its end after a dot, to its own r or alpha
    modules_to_save modules trained in full and saved whole, such as a new head
    trainable_token_indices     tokens whose rows of the input embedding, and of what is tied to it, are trained;
                    a mapping names other embeddings, such as an untied head
    init            of A: kaiming (U(-1/sqrt(d_in), 1/sqrt(d_in)), as the authors' code) or gaussian (std 1/r)
    rslora          s = alpha / sqrt(r)

    `preset: small | medium | large` stands for the numbers of a size; what is written beside it counts more.
    """

    kind: ClassVar[str] = "lora"
    peft_type: ClassVar[str | None] = "LORA"
    peft_names: ClassVar[Mapping[str, str]] = {
        "lora_alpha": "write alpha",
        "lora_dropout": "write dropout",
        "use_rslora": "write rslora",
        "init_lora_weights": "write init: kaiming or gaussian",
        "rank": "write r",
        "fan_in_fan_out": "leave it out, it is read off the layer",
        "task_type": "leave it out, the task is named in the recipe",
        "exclude_modules": "name what is adapted in target_modules",
        "layers_to_transform": "name what is adapted in target_modules, a glob such as 'model.layers.[0-7].*'",
    }

    kinds: ClassVar[tuple[Kind, ...]] = ("linear", "embedding")
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
        {"rank_pattern", "alpha_pattern", "trainable_token_indices", "init_lora_weights"}
    )

    dropout: float = Field(0.0, ge=0, lt=1)
    bias: Literal["none", "all", "lora_only"] = "none"
    trainable_token_indices: Tokens | dict[str, Tokens] = ()
    init: Literal["kaiming", "gaussian"] = "kaiming"
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
        module = LoRAEmbedding if site.kind == "embedding" else LoRALinear
        return lambda start: module(self, site, start)

    def edits(self, sites: tuple[Site, ...], statistics: Mapping[str, Any] | None = None) -> tuple[Edit, ...]:
        edits, saved = super().edits(sites, statistics), self.saved(sites)
        rows, _ = token_rows.chosen(self.trainable_token_indices, sites)
        adapted = {edit.site.name for edit in edits if edit.place == "around"}
        biases = [site for site in sites if self._trains_bias(site, adapted) and site not in saved]
        copies = (Instead(site, Copy) for site in biases)
        return (*edits, *copies, *(Instead(site, partial(TokenRows, tokens)) for site, tokens in rows))

    def problems(self, adapted: list[Site], sites: tuple[Site, ...]) -> list[str]:
        rows, problems = token_rows.chosen(self.trainable_token_indices, sites)
        saved = self.saved(sites)
        twice = [f"{site.name}: modules_to_save trains all of its rows already" for site, _ in rows if site in saved]
        return [*problems, *super().problems(adapted, sites), *twice]

    def scale(self, site: Site) -> float:
        r = self.rank(site)
        return self.alpha_of(site) / (math.sqrt(r) if self.rslora else r)

    def note(self, edit: Edit) -> str:
        return f"{len(edit.build.args[0])} rows" if isinstance(edit.build, partial) else super().note(edit)

    def remarks(self, sites: tuple[Site, ...]) -> tuple[str, ...]:
        return token_rows.remarks(self.trainable_token_indices, sites)

    def advice(self) -> str:
        tune = " (rsLoRA: lower it as r grows)" if self.rslora else ""
        return f"learning rate for LoRA: start at {presets.LEARNING_RATE}{tune}"

    def _trains_bias(self, site: Site, adapted: Container[str]) -> bool:
        if site.kind != "parameter" or site.leaf != "bias" or self.bias == "none":
            return False
        return self.bias == "all" or site.name.rpartition(".")[0] in adapted

    def file_name(self, edit: Edit, parameter: str, around: Container[str]) -> str:
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

    def peft_config(self, edits: tuple[Edit, ...], sites: tuple[Site, ...]) -> dict[str, Any]:
        return {
            **self.where_entries(edits, sites),
            **self.rank_entries(edits),
            "lora_alpha": plain_number(self.alpha),
            "lora_dropout": self.dropout,
            "bias": self.bias,
            "trainable_token_indices": token_rows.listed(self.trainable_token_indices),
            "init_lora_weights": True if self.init == "kaiming" else self.init,
            "use_rslora": self.rslora,
            "fan_in_fan_out": any(edit.site.transposed for edit in edits if edit.place == "around"),
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
            return Site(name=name, kind="linear", shape=(ends["B.weight"][0], ends["A.weight"][-1]))
        if set(ends) == {"embedding_A", "embedding_B"}:
            return Site(name=name, kind="embedding", shape=(ends["embedding_A"][-1], ends["embedding_B"][0]))
        raise AdapterError(f"{name}: half of a low-rank pair is missing from the file")

    @classmethod
    def where_of_config(cls, given: Mapping[str, Any], sites: tuple[Site, ...]) -> tuple[dict[str, Any], list[str]]:
        ours, problems = super().where_of_config(given, sites)
        init = STARTS.get(str(given.get("init_lora_weights", True)))
        if init is None:
            remedy = "start from kaiming or gaussian"
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


STARTS = {"True": "kaiming", "None": "kaiming", "gaussian": "gaussian"}
MOVES_THE_BASE = frozenset({"pissa", "olora", "corda", "loftq", "lora_ga"})


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
        return torch.addmm(W, self.B.to(W.dtype), self.A.to(W.dtype), alpha=self.scale)


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
