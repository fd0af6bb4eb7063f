"""LoRA: y = W x + s B A dropout(x).        Hu et al. 2021, arXiv:2106.09685, section 4.1

A (r, d_in) starts random, B (d_out, r) starts at zero, so training starts at the base.  s = alpha / r, or
alpha / sqrt(r) with rsLoRA (Kalajdzievski 2023, arXiv:2312.03732), in the forward pass and in the merge.
On an embedding (rows, d) the roles swap: A (r, rows) starts at zero, B (d, r) random, and A is looked up by column.
"""

import math
import re
from collections.abc import Collection, Container, Iterable, Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor, nn

from lorica.errors import AdapterError, RecipeError, TargetError, did_you_mean
from lorica.kernels import LowRank, site_id
from lorica.methods import peft_config, peft_keys, presets, token_rows
from lorica.methods.contract import Around, AroundLinear, Build, Copy, Edit, Flow, Instead, Method, Start
from lorica.methods.peft_keys import FILE_NAME_END, PREFIX
from lorica.methods.targets import Selection, ends, matches, select, shortest_names
from lorica.methods.token_rows import TokenRows, Tokens
from lorica.site import Site

T = TypeVar("T")
LARGEST_RANK = 2**31 - 1
"""Beyond it the sizes of a module overflow before anything is compared with the layer."""


class LoRA(Method):
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

    r: int = Field(8, ge=1, le=LARGEST_RANK)
    alpha: float = Field(16.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: str | tuple[str, ...] = "all-linear"
    bias: Literal["none", "all", "lora_only"] = "none"
    rank_pattern: dict[str, Annotated[int, Field(le=LARGEST_RANK)]] = Field(default_factory=dict)
    alpha_pattern: dict[str, float] = Field(default_factory=dict)
    modules_to_save: tuple[str, ...] = ()
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

    def edits(self, sites: tuple[Site, ...], statistics: Mapping[str, Any] | None = None) -> tuple[Edit, ...]:
        chosen = self.selection(sites).sites
        saved = [site for site in sites if site.kind == "parameter" and self.saves(site.name.rpartition(".")[0])]
        adapted = [site for site in chosen if not self.saves(site.name)]
        rows, problems = token_rows.chosen(self.trainable_token_indices, sites)
        problems += [*self._pattern_problems(adapted), *self._rank_problems(adapted), *self._save_problems(sites)]
        problems += [
            f"{site.name}: modules_to_save trains all of its rows already" for site, _ in rows if site in saved
        ]
        if problems:
            raise TargetError.of(problems)
        biases = [site for site in sites if self._trains_bias(site, adapted) and site not in saved]
        around: list[Edit] = [Around(site, self._builder(site)) for site in adapted]
        copies: list[Edit] = [Instead(site, Copy) for site in (*saved, *biases)]
        return (*around, *copies, *(Instead(site, partial(TokenRows, tokens)) for site, tokens in rows))

    def wasteful(self, edits: Iterable[Edit]) -> list[str]:
        return [
            f"r: {self.rank(site)} is beyond {site.name} {site.shape}, use 1 to {min(site.shape)}"
            for site in (edit.site for edit in edits if edit.place == "around")
            if self.rank(site) > min(site.shape)
        ]

    def selection(self, sites: tuple[Site, ...]) -> Selection:
        named = not isinstance(self.target_modules, str)
        return select(sites, self.target_modules, ("linear", "embedding") if named else ("linear",))

    def rank(self, site: Site) -> int:
        return _from_pattern(self.rank_pattern, site.name, self.r)

    def scale(self, site: Site) -> float:
        r = self.rank(site)
        return _from_pattern(self.alpha_pattern, site.name, self.alpha) / (math.sqrt(r) if self.rslora else r)

    def note(self, edit: Edit) -> str:
        if isinstance(edit.build, partial):
            return f"{len(edit.build.args[0])} rows"
        return f"r={self.rank(edit.site)} s={self.scale(edit.site):g}" if edit.place == "around" else ""

    def remarks(self, sites: tuple[Site, ...]) -> tuple[str, ...]:
        return token_rows.remarks(self.trainable_token_indices, sites)

    def advice(self) -> str:
        tune = " (rsLoRA: lower it as r grows)" if self.rslora else ""
        return f"learning rate for LoRA: start at {presets.LEARNING_RATE}{tune}"

    def _builder(self, site: Site) -> Build:
        module = LoRAEmbedding if site.kind == "embedding" else LoRALinear
        return lambda start: module(self, site, start)

    def saves(self, module: str) -> bool:
        """Whether `modules_to_save` trains this module whole."""
        return any(matches(module, name) or f".{name}." in f".{module}." for name in self.modules_to_save)

    def _trains_bias(self, site: Site, adapted: list[Site]) -> bool:
        if site.kind != "parameter" or site.leaf != "bias" or self.bias == "none":
            return False
        return self.bias == "all" or site.name.rpartition(".")[0] in {around.name for around in adapted}

    def _pattern_problems(self, adapted: list[Site]) -> list[str]:
        leaves = {site.leaf for site in adapted}
        names = {end for site in adapted for end in ends(site.name)}
        patterns = {"rank_pattern": self.rank_pattern, "alpha_pattern": self.alpha_pattern}
        return [
            f"{field}: {key!r} matches no adapted site{did_you_mean(key, leaves)}"
            for field, pattern in patterns.items()
            for key in pattern
            if key not in names
        ]

    def _rank_problems(self, adapted: list[Site]) -> list[str]:
        return [
            f"r: {self.rank(site)} at {site.name}, use 1 to {min(site.shape)}"
            for site in adapted
            if self.rank(site) < 1
        ]

    def _save_problems(self, sites: tuple[Site, ...]) -> list[str]:
        modules = {site.name.rpartition(".")[0] for site in sites if site.kind == "parameter"}
        missing = [
            _missing(name, sites, {module.rpartition(".")[2] for module in modules})
            for name in self.modules_to_save
            if not any(matches(module, name) or f".{name}." in f".{module}." for module in modules)
        ]
        # PEFT matches these names without a dot before them, so it would look for both modules in the file.
        confused = [
            f"modules_to_save: for PEFT {name!r} is also the end of {module!r}; name both, or save under its full path"
            for name in self.modules_to_save
            for module in sorted(modules)
            if module.endswith(name) and not any(matches(module, saved) for saved in self.modules_to_save)
        ]
        return missing + confused

    def file_name(self, edit: Edit, parameter: str, around: Container[str]) -> str:
        name = edit.site.name
        if edit.place == "instead":
            module, _, leaf = name.rpartition(".")
            if isinstance(edit.build, partial):
                return f"{PREFIX}{module}{token_rows.SUFFIX}"
            return f"{PREFIX}{module}.base_layer.{leaf}" if module in around else PREFIX + name
        return f"{PREFIX}{name}.lora_{'embedding_' if edit.site.kind == 'embedding' else ''}{parameter}" + (
            "" if edit.site.kind == "embedding" else ".weight"
        )

    @classmethod
    def site_name(cls, key: str) -> str:
        if key.endswith(token_rows.SUFFIX):
            return key.removeprefix(PREFIX).removesuffix(token_rows.SUFFIX) + ".weight"
        return FILE_NAME_END.sub("", cls.parameter_name(key))

    def peft_config(self, edits: tuple[Edit, ...], sites: tuple[Site, ...]) -> dict[str, Any]:
        adapted = [edit.site for edit in edits if edit.place == "around"]
        names = {site.name for site in adapted}
        return {
            "peft_type": self.peft_type,
            "r": self.r,
            "lora_alpha": _number(self.alpha),
            "lora_dropout": self.dropout,
            "target_modules": _peft_targets(adapted, sites),
            "bias": self.bias,
            "rank_pattern": peft_config.unordered(self.rank_pattern, names),
            "alpha_pattern": {
                key: _number(alpha) for key, alpha in peft_config.unordered(self.alpha_pattern, names).items()
            },
            "modules_to_save": list(self.modules_to_save) or None,
            "trainable_token_indices": token_rows.listed(self.trainable_token_indices),
            "init_lora_weights": True if self.init == "kaiming" else self.init,
            "use_rslora": self.rslora,
            "fan_in_fan_out": any(site.transposed for site in adapted),
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
        if set(ends) == {"A.weight", "B.weight"}:
            return Site(name=name, kind="linear", shape=(ends["B.weight"][0], ends["A.weight"][-1]))
        if set(ends) == {"embedding_A", "embedding_B"}:
            return Site(name=name, kind="embedding", shape=(ends["embedding_A"][-1], ends["embedding_B"][0]))
        raise AdapterError(f"{name}: half of a low-rank pair is missing from the file")

    @classmethod
    def parameter_name(cls, key: str) -> str:
        return key.removeprefix(PREFIX).replace(".base_layer.", ".").replace(".token_adapter.", ".")

    @classmethod
    def plain_keys(cls, keys: Collection[str]) -> dict[str, str]:
        return peft_keys.plain(keys)

    @classmethod
    def surplus(cls, key: str) -> bool:
        return key.endswith(".base_layer.weight") or ".original_module." in key or ".modules_to_save." in key

    @classmethod
    def from_peft(cls, config: Any, sites: tuple[Site, ...] = ()) -> "LoRA":
        """The LoRA that a `peft.LoraConfig` (or a dict of its fields) describes.

        sites: those of the base, in which the heads are found that PEFT trains for a classifier without being asked.
        """
        given = peft_config.fields(config)
        targets = given.get("target_modules")
        if isinstance(targets, str) and targets != "all-linear":
            raise RecipeError(f"target_modules: PEFT reads {targets!r} as a regular expression; give a list or a glob")
        listed = targets if isinstance(targets, str) else tuple(sorted(targets or ())) or "minimal"
        saved, problems = peft_config.names(given.get("modules_to_save"), "modules_to_save")
        heads = peft_config.heads(given, [s.name.rpartition(".")[0] for s in sites if s.kind == "parameter"])
        saved = (*saved, *(head for head in heads if head not in saved))
        problems += peft_config.problems(given, UNDERSTOOD - {"exclude_modules", "layers_to_transform"}, cls.peft_names)
        if not sites and peft_config.lacks_head(given):
            problems.append("task_type: PEFT trains the head as well; give the config to lorica.attach, which finds it")
        init = STARTS.get(str(given.get("init_lora_weights", True)))
        if init is None:
            remedy = "start from kaiming or gaussian"
            problems.append(f"init_lora_weights: {given['init_lora_weights']!r} has no counterpart here; {remedy}")
        ours = {"modules_to_save": saved, "trainable_token_indices": given.get("trainable_token_indices") or ()}
        return cls._translated(given, problems, target_modules=listed, init=init, **ours)

    @classmethod
    def from_file(cls, config: Mapping[str, Any], keys: Collection[str]) -> "LoRA":
        """Where the adapter sits is read off the tensors; names in patterns and `modules_to_save` that none of them
        needs are dropped (PEFT adds `score` and `classifier` to every classifier's list)."""
        adapted = sorted({cls.site_name(key) for key in keys if FILE_NAME_END.search(key)})
        rows = [cls.site_name(key).removesuffix(".weight") for key in keys if key.endswith(token_rows.SUFFIX)]
        others = [key for key in keys if not FILE_NAME_END.search(key) and not key.endswith(token_rows.SUFFIX)]
        copied = {key.removeprefix(PREFIX).rpartition(".")[0] for key in others}
        saved, problems = peft_config.names(config.get("modules_to_save"), "modules_to_save")
        if len(saved) * len(copied) > MOST_LOOKED_FOR:
            raise RecipeError(f"modules_to_save: {len(saved)} names for {len(copied)} modules, which no adapter has")
        problems += peft_config.problems(config, UNDERSTOOD | {"ensure_weight_tying"})
        if str(config.get("init_lora_weights")).partition("_niter_")[0] in MOVES_THE_BASE:
            remedy = "convert it in PEFT with path_initial_model_for_weight_conversion"
            problems.append(f"init_lora_weights: {config['init_lora_weights']!r} changed the base itself; {remedy}")
        held = _held(saved, copied)
        if config.get("ensure_weight_tying"):  # the config names one of the modules that are saved
            held = tuple(sorted({*held, *_whole(keys)}))
        tokens = token_rows.placed(config.get("trainable_token_indices"), rows)
        ours = {"modules_to_save": held, "trainable_token_indices": tokens}
        method = cls._translated(config, problems, target_modules=tuple(adapted), **ours)
        patterns = {"rank_pattern": method.rank_pattern, "alpha_pattern": method.alpha_pattern}
        return method.model_copy(update={field: _needed(pattern, adapted) for field, pattern in patterns.items()})

    @classmethod
    def _translated(cls, given: Mapping[str, Any], problems: list[str], **ours: Any) -> "LoRA":
        ranks, strange_ranks = peft_config.literal_pattern(given, "rank_pattern")
        alphas, strange_alphas = peft_config.literal_pattern(given, "alpha_pattern")
        problems = [*problems, *strange_ranks, *strange_alphas]
        if problems:
            raise RecipeError.of(problems)
        values = {name: given[theirs] for theirs, name in TRANSLATED.items() if given.get(theirs) is not None}
        try:
            return cls.model_validate({"alpha": 8, **values, "rank_pattern": ranks, "alpha_pattern": alphas, **ours})
        except ValidationError as error:
            told = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
            raise RecipeError.of(told) from None


TRANSLATED = {"r": "r", "lora_alpha": "alpha", "lora_dropout": "dropout", "bias": "bias", "use_rslora": "rslora"}
UNDERSTOOD = frozenset(
    {
        *TRANSLATED,
        *peft_config.WHERE_TO_ADAPT,
        "rank_pattern",
        "alpha_pattern",
        "modules_to_save",
        "trainable_token_indices",
        "init_lora_weights",
    }
)
STARTS = {"True": "kaiming", "None": "kaiming", "gaussian": "gaussian"}
MOST_LOOKED_FOR = 1_000_000
"""Names times modules: a file that asks for more only wants the time."""
MOVES_THE_BASE = frozenset({"pissa", "olora", "corda", "loftq", "lora_ga"})


def _held(saved: Collection[str], modules: Collection[str]) -> tuple[str, ...]:
    """The modules that a file saves whole: their paths end as PEFT matches them, without a dot before the name."""
    parts = (module.split(".") for module in modules if saved)
    paths = (".".join(words[:end]) for words in parts for end in range(1, len(words) + 1))
    return tuple(sorted({path for path in paths if path.endswith(tuple(saved))}))


def _whole(keys: Collection[str]) -> set[str]:
    """The modules whose own weight is in a file."""
    weights = {key for key in keys if key.endswith(".weight") and not FILE_NAME_END.search(key)}
    return {key.removeprefix(PREFIX).rpartition(".")[0] for key in weights if ".base_layer." not in key}


def _missing(name: str, sites: tuple[Site, ...], near: Collection[str]) -> str:
    """A tied parameter is listed under its first name alone."""
    if any(matches(site.name, name) for site in sites if site.kind in ("linear", "embedding")):
        untie = "leave it out, or give a base saved with tie_word_embeddings=False"
        return f"modules_to_save: {name!r} is tied with another module, which a saved copy would leave behind; {untie}"
    return f"modules_to_save: {name!r} matches no module{did_you_mean(name, near)}"


def _needed(pattern: Mapping[str, T], names: Collection[str]) -> dict[str, T]:
    used = {end for name in names for end in ends(name) if end in pattern}
    return {key: value for key, value in pattern.items() if key in used}


def _number(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value


def _peft_targets(adapted: list[Site], sites: tuple[Site, ...]) -> list[str] | str:
    """Names that choose the same modules in PEFT; where no list can (a top-level module whose name is also the end of
    another's path), the regular expression of the full paths."""
    chosen = {site.name for site in adapted}
    paths = {s.name.rpartition(".")[0] if s.kind == "parameter" else s.name for s in sites}
    others = paths - chosen
    names = shortest_names(adapted, others)
    if any(matches(other, name) for other in others for name in names):
        return "|".join(re.escape(name) for name in sorted(chosen))
    return names


def _from_pattern(pattern: Mapping[str, T], name: str, default: T) -> T:
    """The first entry that matches, as PEFT takes it."""
    found = {end for end in ends(name) if end in pattern}
    return next((value for key, value in pattern.items() if key in found), default) if found else default


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
