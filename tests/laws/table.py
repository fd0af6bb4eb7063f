"""Which methods stand before the laws.  A row buys a method every law that applies to it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lorica.methods import (
    BitFit,
    Bottleneck,
    Full,
    LoRA,
    Method,
    Norm,
    Prefix,
    Prompt,
    PTuning,
    PTuningV2,
    TrainableTokens,
)
from lorica.methods.targets import select
from lorica.site import Site
from ten_line_methods import Magnitude, Scales
from tiny_bases import BASES, BERT, GPT2, LLAMA, T5, Base


@dataclass(frozen=True)
class Row:
    """count: the closed form of the trained parameters.  starts: step 0 is the base.  stored: `load` knows it."""

    name: str
    method: Method | tuple[Method, ...]
    count: Callable[[Sequence[Site]], int]
    bases: tuple[Base, ...] = BASES
    starts: bool = True
    stored: bool = False

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


def _norms(sites: Sequence[Site]) -> int:
    return sum(_size(s) for s in sites if s.kind == "parameter" and len(s.shape) == 1 and s.leaf == "weight")


def _width(sites: Sequence[Site]) -> int:
    return next(site.shape[-1] for site in sites if site.kind == "tokens")


def _magnitude(sites: Sequence[Site]) -> int:
    adapted = [s for s in sites if s.kind == "linear" and {"q", "v", "fc1", "up"} & set(s.roles)]
    return sum(3 * sum(site.shape) + site.d_out for site in adapted)


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
ROWS = (
    Row("lora", LoRA(r=3, alpha=8, dropout=0.2), _low_rank("all-linear", 3), stored=True),
    Row("lora-biases", LoRA(r=3, alpha=8, target_modules="attention", bias="lora_only"), _with_biases, stored=True),
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
    Row("full", Full(), _parameters, stored=True),
    Row("magnitude", Magnitude(dropout=0.2), _magnitude),
    Row(
        "scales",
        Scales(),
        lambda sites: sum(
            _size(s) for s in sites if s.kind == "parameter" and len(s.shape) == 1 and s.leaf == "weight"
        ),
    ),
    Row("bitfit", BitFit(), lambda sites: _parameters(sites, ".bias"), bases=WITH_BIASES, stored=True),
    Row("bottleneck", Bottleneck(size=3), _bottlenecks({"attention", "cross_attention", "mlp"}), stored=True),
    Row("bottleneck-mlp", Bottleneck(size=3, placement="pfeiffer"), _bottlenecks({"mlp"}), stored=True),
    Row("norm", Norm(), _of_norms, stored=True),
    Row("p-tuning", PTuning(length=4, hidden=5), _mlp_prompt, bases=READING, starts=False, stored=True),
    Row("p-tuning-lstm", LSTM, _lstm_prompt, bases=READING, starts=False, stored=True),
    Row("p-tuning-v2", PTuningV2(length=4), _keys_values(4), starts=False, stored=True),
    Row("prefix", Prefix(length=4, hidden=6), _projected_prefix, starts=False, stored=True),
    Row("prompt", Prompt(length=4), lambda sites: 4 * _width(sites), bases=READING, starts=False, stored=True),
    Row("lora+prefix", (SMALL, Prefix(length=4, hidden=6)), _both(_projected_prefix), starts=False, stored=True),
    Row(
        "lora+bottleneck",
        (SMALL, Bottleneck(size=3, placement="pfeiffer", nonlinearity="tanh")),
        _both(_bottlenecks({"mlp"})),
        stored=True,
    ),
    Row(
        "lora+bitfit",
        (SMALL, BitFit()),
        _both(lambda sites: _parameters(sites, ".bias")),
        bases=WITH_BIASES,
        stored=True,
    ),
)
CASES = [(base, row) for row in ROWS for base in row.bases]
