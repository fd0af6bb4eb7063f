"""Which methods stand before the laws.  A row buys a method every law that applies to it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lorica.methods import DoRA, Full, LoRA, LoRAFA, Method, TrainableTokens
from lorica.methods.targets import select
from lorica.site import Site
from ten_line_methods import Biases, Bottleneck, Prefix, Prompt, Scales
from tiny_bases import BASES, BERT, GPT2, LLAMA, T5, Base
from tiny_layers import ATTENTION, CONVNET, GPT_OSS, MOE, UNET


@dataclass(frozen=True)
class Row:
    """count: the closed form of the trained parameters.  starts: step 0 is the base.  stored: `load` knows it.
    slopes: the gradients are those of the loss, with nothing held constant and nothing multiplied to them."""

    name: str
    method: Method
    count: Callable[[Sequence[Site]], int]
    bases: tuple[Base, ...] = BASES
    starts: bool = True
    stored: bool = False
    slopes: bool = True

    def __repr__(self) -> str:
        return self.name


def _size(site: Site) -> int:
    size = 1
    for length in site.shape:
        size *= length
    return size


def _parameters(sites: Sequence[Site], end: str = "") -> int:
    return sum(_size(site) for site in sites if site.kind == "parameter" and site.name.endswith(end))


def _low_rank(targets: str | tuple[str, ...], r: int) -> Callable[[Sequence[Site]], int]:
    """r (d_in + d_out) for every adapted site."""

    def count(sites: Sequence[Site]) -> int:
        kinds = ("linear",) if isinstance(targets, str) else ("linear", "embedding")
        return sum(r * sum(site.shape) for site in select(sites, targets, kinds).sites)

    return count


def _with_biases(sites: Sequence[Site]) -> int:
    adapted = {site.name for site in select(sites, "attention").sites}
    biases = [s for s in sites if s.kind == "parameter" and s.leaf == "bias" and s.name.rpartition(".")[0] in adapted]
    return _low_rank("attention", 3)(sites) + sum(_size(site) for site in biases)


def _patterned(sites: Sequence[Site]) -> int:
    return (
        _low_rank(("q_proj",), 5)(sites)
        + _low_rank(("v_proj", "embed_tokens"), 3)(sites)
        + _parameters(sites, "lm_head.weight")
    )


def _of(sites: Sequence[Site], kind: str, factor: Callable[[Site], int]) -> int:
    return sum(factor(site) for site in sites if site.kind == kind)


def _norms(sites: Sequence[Site]) -> int:
    return sum(_size(s) for s in sites if s.kind == "parameter" and len(s.shape) == 1 and s.leaf == "weight")


def _width(sites: Sequence[Site]) -> int:
    return next(site.shape[-1] for site in sites if site.kind == "tokens")


def _dora(targets: str | tuple[str, ...], r: int) -> Callable[[Sequence[Site]], int]:
    """r (d_in + d_out) + d_out for every adapted site."""

    def count(sites: Sequence[Site]) -> int:
        kinds = ("linear",) if isinstance(targets, str) else ("linear", "embedding")
        return _low_rank(targets, r)(sites) + sum(site.d_out for site in select(sites, targets, kinds).sites)

    return count


def _frozen_A(sites: Sequence[Site]) -> int:
    return sum(3 * site.d_out for site in select(sites, "all-linear").sites)


def _ramp(sites: Sequence[Site]) -> int:
    """Ranks 1 and 4 in the two blocks of every stack, 2 outside."""
    adapted = select(sites, "all-linear").sites
    return sum({0: 1, 1: 4, None: 2}[site.layer] * sum(site.shape) for site in adapted)


def _any_rank(*names: str, r: int) -> Callable[[Sequence[Site]], int]:
    """r (d_out + everything under the kernel) for a convolution or a linear, for each expert the same."""

    def count(sites: Sequence[Site]) -> int:
        chosen = [s for s in sites if s.kind in ("linear", "conv", "experts") and s.name.endswith(names)]
        return sum(r * _pair(s) for s in chosen)

    return count


def _pair(site: Site) -> int:
    if site.kind == "experts":
        experts, d_out, d_in = site.shape
        return experts * (d_out + d_in)
    d_out, *under = site.shape
    return d_out + math.prod(under)


PATTERNED = LoRA(
    r=3,
    alpha=8,
    rslora=True,
    dropout=0.2,
    target_modules=("q_proj", "v_proj", "embed_tokens"),
    rank_pattern={"q_proj": 5},
    alpha_pattern={"v_proj": 3.0},
    modules_to_save=("lm_head",),
)
UNET_NAMES = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "time_emb_proj", "conv_shortcut", "proj_in")
ROWS = (
    Row("lora", LoRA(r=3, alpha=8, dropout=0.2), _low_rank("all-linear", 3), stored=True),
    Row(
        "lora-biases",
        LoRA(r=3, alpha=8, rslora=True, target_modules="attention", bias="lora_only"),
        _with_biases,
        stored=True,
    ),
    Row("lora-pissa", LoRA(r=3, alpha=8, dropout=0.2, init="pissa"), _low_rank("all-linear", 3), stored=True),
    Row(
        "lora-olora",
        LoRA(r=3, alpha=8, rslora=True, init="olora", target_modules="attention"),
        _low_rank("attention", 3),
        bases=(GPT2,),
        stored=True,
    ),
    Row(
        "lora-eva",
        LoRA(r=3, alpha=8, dropout=0.2, init={"name": "eva", "rho": 1}),
        _low_rank("all-linear", 3),
        bases=(LLAMA,),
        stored=True,
    ),
    Row(
        "lora-ga",
        LoRA(r=3, alpha=8, dropout=0.2, init="lora_ga", target_modules="attention"),
        _low_rank("attention", 3),
        bases=(LLAMA,),
        stored=True,
    ),
    Row("lora-patterns", PATTERNED, _patterned, bases=(LLAMA,), stored=True),
    Row(
        "lora-rows",
        LoRA(r=3, alpha=8, target_modules="minimal", trainable_token_indices=(6, 39)),
        lambda sites: _low_rank("minimal", 3)(sites) + 2 * _width(sites),
        bases=(LLAMA, GPT2, BERT, T5),
        stored=True,
    ),
    Row(
        "tokens",
        TrainableTokens(token_indices=(6, 39)),
        lambda sites: 2 * _width(sites),
        bases=(LLAMA, GPT2, BERT, T5),
        stored=True,
    ),
    Row(
        "lora-convolutions",
        LoRA(r=3, alpha=8, dropout=0.2, target_modules="*"),
        _any_rank("", r=3),
        bases=(CONVNET,),
        stored=True,
    ),
    Row(
        "lora-unet",
        LoRA(r=3, alpha=8, dropout=0.2, target_modules=UNET_NAMES, rank_pattern={"conv1": 2}),
        lambda sites: _any_rank(*UNET_NAMES, r=3)(sites) - _any_rank("conv1", r=1)(sites),
        bases=(UNET,),
        stored=True,
    ),
    Row("lora-projections", LoRA(r=2, alpha=7), _low_rank("all-linear", 2), bases=(ATTENTION,), stored=True),
    Row(
        "lora-experts",
        LoRA(r=2, alpha=7, target_modules=("mlp.experts", "q_proj")),
        _any_rank("experts.gate_up_proj", "experts.down_proj", "q_proj", r=2),
        bases=(MOE, GPT_OSS),
        stored=True,
    ),
    Row("full", Full(), _parameters, stored=True),
    Row(
        "dora",
        DoRA(r=3, alpha=8, dropout=0.2, target_modules="attention"),
        _dora("attention", 3),
        stored=True,
        slopes=False,
    ),
    Row(
        "dora-embeddings",
        DoRA(r=3, alpha=8, rslora=True, bias="all", target_modules=("q_proj", "down_proj", "embed_tokens")),
        lambda sites: _dora(("q_proj", "down_proj", "embed_tokens"), 3)(sites) + _parameters(sites, ".bias"),
        bases=(LLAMA,),
        stored=True,
        slopes=False,
    ),
    Row("lora-fa", LoRAFA(r=3, alpha=8, dropout=0.2), _frozen_A, stored=True),
    Row(
        "lora-fa-corrected",
        LoRAFA(r=3, alpha=8, dropout=0.2, corrected=True),
        _frozen_A,
        bases=(LLAMA, GPT2),
        stored=True,
        slopes=False,
    ),
    Row("lora-ramp", LoRA(r=2, alpha=8, ramp={"from": 1, "to": 4}), _ramp, bases=(LLAMA, BERT, T5), stored=True),  # type: ignore[arg-type]
    Row("biases", Biases(), lambda sites: _parameters(sites, ".bias"), bases=tuple(b for b in BASES if b is not T5)),
    Row(
        "scales",
        Scales(),
        lambda sites: sum(
            _size(s) for s in sites if s.kind == "parameter" and len(s.shape) == 1 and s.leaf == "weight"
        ),
    ),
    Row("bottleneck", Bottleneck(), lambda sites: _of(sites, "sublayer", lambda site: 6 * site.d_out)),
    Row("prefix", Prefix(), lambda sites: _of(sites, "attention", lambda site: 8 * _size(site)), starts=False),
    Row(
        "prompt",
        Prompt(),
        lambda sites: _of(sites, "tokens", lambda site: 4 * site.d_out),
        bases=(LLAMA, BERT, T5),
        starts=False,
    ),
)
CASES = [(base, row) for row in ROWS for base in row.bases]
