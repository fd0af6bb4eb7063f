"""Which methods stand before the laws.  A row buys a method every law that applies to it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lorica.methods import (
    IA3,
    AdaLoRA,
    BitFit,
    Bottleneck,
    DoRA,
    Full,
    HeadOnly,
    HiRA,
    LoHa,
    LoKr,
    LoRA,
    LoRAFA,
    Method,
    MultiLoRA,
    Norm,
    Prefix,
    Prompt,
    PTuning,
    PTuningV2,
    TrainableTokens,
    VeRA,
)
from lorica.methods.targets import select
from lorica.site import Site
from ten_line_methods import Scales
from tiny_bases import BASES, BERT, GPT2, INT8, INT8_KEPT, LLAMA, NF4, NF4_KEPT, T5, VIT, VOCABULARY, Base
from tiny_layers import ATTENTION, CONVNET, GPT_OSS, MOE, UNET
from tiny_seeing import BLIP, LLAVA


@dataclass(frozen=True)
class Row:
    """count: the closed form of the trained parameters.  starts: step 0 is the base.  stored: `load` knows it.
    repairs: step 0 is nearer to what was quantised than the base is.
    bent: why the gradients are not the slopes of the loss; empty where they are, and the law asks for it.
    sampled: the test command takes each law on the first base and on one of the others in turn, `make laws` on all."""

    name: str
    method: Method | tuple[Method, ...]
    count: Callable[[Sequence[Site]], int]
    bases: tuple[Base, ...] = BASES
    starts: bool = True
    repairs: bool = False
    stored: bool = False
    bent: str = ""
    sampled: bool = False

    @property
    def mergeable(self) -> bool:
        return all(m.mergeable for m in (self.method if isinstance(self.method, tuple) else (self.method,)))

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


def _gains(sites: Sequence[Site]) -> int:
    """d_out for keys and values, d_in for the last linear of the MLP."""
    chosen = select(sites, "kv-ffn").sites
    return sum(site.d_in if {"down", "fc2"} & set(site.roles) else site.d_out for site in chosen)


def _kronecker(sites: Sequence[Site]) -> int:
    """Both matrices of rank 1: a + c + b + d, where d_out = a b, d_in = c d."""
    split = {16: 4 + 4, 32: 4 + 8, 40: 5 + 8, 96: 8 + 12, 128: 8 + 16}
    return sum(split[site.d_out] + split[site.d_in] for site in select(sites, "all-linear").sites)


def _all(each: Callable[[Site], int]) -> Callable[[Sequence[Site]], int]:
    return lambda sites: sum(each(site) for site in select(sites, "all-linear").sites)


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


def _bottlenecks(roles: set[str]) -> Callable[[Sequence[Site]], int]:
    """2 m d + d + m with m = 3."""
    return lambda sites: sum(7 * s.d_out + 3 for s in sites if s.kind == "sublayer" and roles & set(s.roles))


def _of_norms(sites: Sequence[Site]) -> int:
    return sum(_size(s) for s in sites if s.kind == "parameter" and "norm" in s.roles)


def _keys_values(length: int) -> Callable[[Sequence[Site]], int]:
    return lambda sites: _of(sites, "attention", lambda site: 2 * length * _size(site))


def _projected_prefix(sites: Sequence[Site]) -> int:
    """E (4, 32), W_1 (6, 32) with its bias, and (2 K E, 6) with its bias for every attention."""
    return 4 * 32 + 6 * 32 + 6 + _of(sites, "attention", lambda site: 2 * _size(site) * (6 + 1))


def _mlp_prompt(sites: Sequence[Site]) -> int:
    d = _width(sites)
    return 4 * d + (5 * d + 5) + (5 * 5 + 5) + (5 * d + d)


def _lstm_prompt(sites: Sequence[Site]) -> int:
    """Four gates with two biases, two directions, two layers (the second reads both directions of the first)."""
    d = _width(sites)
    lstm = 2 * 4 * 5 * (d + 5 + 2) + 2 * 4 * 5 * (2 * 5 + 5 + 2)
    return 4 * d + lstm + (10 * 10 + 10) + (10 * d + d)


def _both(other: Callable[[Sequence[Site]], int]) -> Callable[[Sequence[Site]], int]:
    return lambda sites: _low_rank("attention", 3)(sites) + other(sites)


WITH_BIASES = tuple(base for base in BASES if base is not T5)
READING = (LLAMA, GPT2, BERT, T5)
LSTM = PTuning(length=4, hidden=5, encoder="lstm")
SMALL = LoRA(r=3, alpha=8, dropout=0.2, target_modules="attention")
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
NORMS_HELD = "DoRA takes the norms of the rows for constants; test_laws_of_constant_norms.py really holds them"
PRECONDITIONED = "B's gradient is multiplied by s^-2 (A A^T)^-1; test_lora_fa_oracle.py asks for just that"
UNET_NAMES = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "time_emb_proj", "conv_shortcut", "proj_in")
ROWS = (
    Row("lora", LoRA(r=3, alpha=8, dropout=0.2), _low_rank("all-linear", 3), stored=True),
    Row(
        "lora-biases",
        LoRA(r=3, alpha=8, rslora=True, target_modules="attention", bias="lora_only"),
        _with_biases,
        stored=True,
        sampled=True,
    ),
    Row(
        "lora-pissa",
        LoRA(r=3, alpha=8, dropout=0.2, init="pissa"),
        _low_rank("all-linear", 3),
        stored=True,
        sampled=True,
    ),
    Row(
        "lora-olora",
        LoRA(r=3, alpha=8, rslora=True, init="olora", target_modules="attention"),
        _low_rank("attention", 3),
        stored=True,
        sampled=True,
    ),
    Row(
        "lora-eva",
        LoRA(r=3, alpha=8, dropout=0.2, init={"name": "eva", "rho": 1}),
        _low_rank("all-linear", 3),
        stored=True,
        sampled=True,
    ),
    Row(
        "lora-ga",
        LoRA(r=3, alpha=8, dropout=0.2, init="lora_ga", target_modules="attention"),
        _low_rank("attention", 3),
        stored=True,
        sampled=True,
    ),
    Row(
        "lora-loftq",
        LoRA(r=3, alpha=8, dropout=0.2, init="loftq"),
        _low_rank("all-linear", 3),
        bases=(NF4_KEPT, INT8_KEPT),
        starts=False,
        repairs=True,
        stored=True,
    ),
    Row(
        "dora-loftq",
        DoRA(r=3, alpha=8, rslora=True, init="loftq", target_modules="attention"),
        _dora("attention", 3),
        bases=(NF4_KEPT,),
        starts=False,
        repairs=True,
        stored=True,
        bent=NORMS_HELD,
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
    Row("ia3", IA3(), _gains, stored=True),
    Row(
        "loha",
        LoHa(r=3, alpha=30, dropout=0.2),
        lambda sites: 2 * _low_rank("all-linear", 3)(sites),
        stored=True,
        sampled=True,
    ),
    Row("lokr", LoKr(r=1, alpha=8, dropout=0.2, decompose_both=True), _kronecker, stored=True, sampled=True),
    Row("vera", VeRA(r=7, dropout=0.2), _all(lambda site: site.d_out + 7), stored=True),
    Row(
        "vera-drawn-again", VeRA(r=7, seed=3, save_projection=False), _all(lambda s: s.d_out + 7), (LLAMA,), stored=True
    ),
    Row(
        "multilora",
        MultiLoRA(n=2, r=3, dropout=0.2),
        _all(lambda site: 6 * (site.d_in + site.d_out) + 2 * site.d_out),
        stored=True,
        sampled=True,
    ),
    Row("hira", HiRA(r=3, dropout=0.2), _low_rank("all-linear", 3), stored=True, sampled=True),
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
    Row("lora-seeing", LoRA(r=3, alpha=8, dropout=0.2), _low_rank("all-linear", 3), bases=(BLIP, LLAVA), stored=True),
    Row("lora-projections", LoRA(r=2, alpha=7), _low_rank("all-linear", 2), bases=(ATTENTION,), stored=True),
    Row(
        "lora-experts",
        LoRA(r=2, alpha=7, target_modules=("mlp.experts", "q_proj")),
        _any_rank("experts.gate_up_proj", "experts.down_proj", "q_proj", r=2),
        bases=(MOE, GPT_OSS),
        stored=True,
    ),
    Row(  # init_r is r: finished from the start, so that it saves and merges
        "adalora",
        AdaLoRA(r=3, init_r=3, alpha=8, dropout=0.2),
        lambda sites: _low_rank("all-linear", 3)(sites) + 3 * len(select(sites, "all-linear").sites),
        stored=True,
    ),
    Row("full", Full(), _parameters, stored=True),
    Row(
        "dora",
        DoRA(r=3, alpha=8, dropout=0.2, target_modules="attention"),
        _dora("attention", 3),
        stored=True,
        bent=NORMS_HELD,
    ),
    Row(
        "dora-embeddings",
        DoRA(r=3, alpha=8, rslora=True, bias="all", target_modules=("q_proj", "down_proj", "embed_tokens")),
        lambda sites: _dora(("q_proj", "down_proj", "embed_tokens"), 3)(sites) + _parameters(sites, ".bias"),
        bases=(LLAMA,),
        stored=True,
        bent=NORMS_HELD,
    ),
    Row("lora-fa", LoRAFA(r=3, alpha=8, dropout=0.2), _frozen_A, stored=True),
    Row(
        "lora-fa-corrected",
        LoRAFA(r=3, alpha=8, dropout=0.2, corrected=True),
        _frozen_A,
        stored=True,
        sampled=True,
        bent=PRECONDITIONED,
    ),
    Row("lora-ramp", LoRA(r=2, alpha=8, ramp={"from": 1, "to": 4}), _ramp, stored=True, sampled=True),  # type: ignore[arg-type]
    Row(
        "head",
        HeadOnly(),
        lambda sites: sum(_size(s) for s in sites if s.kind == "parameter" and "head" in s.roles),
        bases=(LLAMA, BERT, VIT),
        stored=True,
    ),
    *(
        Row(
            f"head-tied-{base}",
            HeadOnly(modules_to_save=(name,)),
            lambda sites: VOCABULARY * _width(sites),
            bases=(base,),
            stored=True,
        )
        for base, name in ((GPT2, "wte"), (T5, "shared"))
    ),
    Row(
        "scales",
        Scales(),
        lambda sites: sum(
            _size(s) for s in sites if s.kind == "parameter" and len(s.shape) == 1 and s.leaf == "weight"
        ),
    ),
    Row("bitfit", BitFit(), lambda sites: _parameters(sites, ".bias"), bases=WITH_BIASES, stored=True),
    Row("bottleneck", Bottleneck(size=3), _bottlenecks({"attention", "cross_attention", "mlp"}), stored=True),
    Row("bottleneck-mlp", Bottleneck(size=3, placement="pfeiffer"), _bottlenecks({"mlp"}), stored=True, sampled=True),
    Row("norm", Norm(), _of_norms, stored=True),
    Row("p-tuning", PTuning(length=4, hidden=5), _mlp_prompt, bases=READING, starts=False, stored=True),
    Row("p-tuning-lstm", LSTM, _lstm_prompt, bases=READING, starts=False, stored=True, sampled=True),
    Row("p-tuning-v2", PTuningV2(length=4), _keys_values(4), starts=False, stored=True),
    Row("prefix", Prefix(length=4, hidden=6), _projected_prefix, starts=False, stored=True, sampled=True),
    Row("prompt", Prompt(length=4), lambda sites: 4 * _width(sites), bases=READING, starts=False, stored=True),
    Row(
        "lora+prefix",
        (SMALL, Prefix(length=4, hidden=6)),
        _both(_projected_prefix),
        starts=False,
        stored=True,
        sampled=True,
    ),
    Row(
        "lora+bottleneck",
        (SMALL, Bottleneck(size=3, placement="pfeiffer", nonlinearity="tanh")),
        _both(_bottlenecks({"mlp"})),
        stored=True,
        sampled=True,
    ),
    Row(
        "lora+bitfit",
        (SMALL, BitFit()),
        _both(lambda sites: _parameters(sites, ".bias")),
        bases=WITH_BIASES,
        stored=True,
        sampled=True,
    ),
)
OUT_OF_REACH = ("full", "lora-patterns", "head", "scales")
"""Rows that train weights which a quantised base does not hold, or that are about heads alone."""


def _bases(row: Row) -> tuple[Base, ...]:
    """A Llama in NF4 for whatever is adapted on a Llama, a BERT in eight bits for what reads weights most."""
    if row.name in OUT_OF_REACH or LLAMA not in row.bases:
        return row.bases
    eight = (INT8,) if row.name in ("lora", "dora", "hira", "ia3") else ()
    return (*row.bases, NF4, *eight)


CASES = [(base, row) for row in ROWS for base in _bases(row)]


def in_turn(base: Base, row: Row, turn: int) -> bool:
    """Whether the test command takes this case for law number `turn`."""
    if not row.sampled or base is row.bases[0]:
        return True
    bases = _bases(row)
    return base is bases[1 + (turn + ROWS.index(row)) % (len(bases) - 1)]
