"""Which methods stand before the laws.  A row buys a method every law that applies to it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lorica.methods import Full, HeadOnly, LoRA, Method, TrainableTokens
from lorica.methods.targets import select
from lorica.site import Site
from ten_line_methods import Biases, Bottleneck, Magnitude, Prefix, Prompt, Scales
from tiny_bases import BASES, BERT, GPT2, LLAMA, T5, VIT, Base


@dataclass(frozen=True)
class Row:
    """count: the closed form of the trained parameters.  starts: step 0 is the base.  stored: `load` knows it."""

    name: str
    method: Method
    count: Callable[[Sequence[Site]], int]
    bases: tuple[Base, ...] = BASES
    starts: bool = True
    stored: bool = False

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
    Row(
        "head",
        HeadOnly(),
        lambda sites: sum(_size(s) for s in sites if s.kind == "parameter" and "head" in s.roles),
        bases=(LLAMA, BERT, VIT),
        stored=True,
    ),
    Row("magnitude", Magnitude(dropout=0.2), _magnitude),
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
