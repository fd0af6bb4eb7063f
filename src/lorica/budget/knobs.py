"""What can be turned where memory is short, as a table: first what changes no result, then what costs quality least.

    exact     the same adapter but for rounding: smaller micro-batches, recomputed blocks, what is kept elsewhere
    the rest  in the order in which they are given up: 16-bit weights, then rank, then length

A knob's values are tried from the recipe's own on; each is the recipe's keys with their new values.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

LEAST_TOKENS, LEAST_LENGTH, LEAST_RANK = 256, 128, 4

Settings = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a recipe has of what can be turned.

    r: of the method under the key `ranked`, None where it has none.  quantised: in any form, by the recipe or as
    stored.  own: its decoder is ours, so that weights can be fetched.
    """

    tokens: int
    length: int
    step_tokens: int
    recomputing: bool | int | str
    r: int | None
    ranked: str
    quantised: bool
    own: bool


@dataclass(frozen=True, kw_only=True)
class Knob:
    """values: settings to try after the recipe's own, by what they give up.  words: what it costs, and by which source.
    last: turned only where nothing else fits.  elsewhere: keeps things outside of the device."""

    name: str
    values: Callable[[Asked], Iterator[Settings]]
    words: str
    source: str
    exact: bool = False
    last: bool = False
    elsewhere: bool = False


def _halves(most: int, least: int) -> Iterator[int]:
    while most > least:
        most = max(most // 2, least)
        yield most


def _micro_batches(asked: Asked) -> Iterator[Settings]:
    first = min(asked.tokens, asked.step_tokens)
    yield from ({"train.micro_batch_tokens": each} for each in _halves(first, max(asked.length, LEAST_TOKENS)))


def _recomputing(asked: Asked) -> Iterator[Settings]:
    yield from ({"train.gradient_checkpointing": each} for each in ("auto", True) if each != asked.recomputing)


def _paging(asked: Asked) -> Iterator[Settings]:
    yield {"train.page_state": "1MB"}


def _offloading(asked: Asked) -> Iterator[Settings]:
    yield {"train.offload_activations": True, "train.gradient_checkpointing": True}


def _fetching(asked: Asked) -> Iterator[Settings]:
    if asked.own:
        yield {"model.host_layers": "auto", "train.gradient_checkpointing": True}


def _quantising(asked: Asked) -> Iterator[Settings]:
    if not asked.quantised:
        yield {"model.quantize": "int8"}
        yield {"model.quantize": "nf4", "model.double_quant": True}


def _ranks(asked: Asked) -> Iterator[Settings]:
    if asked.r is not None:
        yield from ({asked.ranked: each} for each in _halves(asked.r, LEAST_RANK))


def _lengths(asked: Asked) -> Iterator[Settings]:
    yield from ({"data.max_length": each} for each in _halves(asked.length, LEAST_LENGTH))


KNOBS: tuple[Knob, ...] = (
    Knob(
        name="micro-batches",
        values=_micro_batches,
        words="fewer tokens at a time: smaller products, the same steps",
        source="docs/decisions/0073",
        exact=True,
    ),
    Knob(
        name="recomputed blocks",
        values=_recomputing,
        words="blocks are computed again in the backward pass: a third more time at most",
        source="Chen et al. 2016, arXiv:1604.06174",
        exact=True,
    ),
    Knob(
        name="paged state",
        values=_paging,
        words="the optimiser's state waits outside of the device and crosses over in every step",
        source="Dettmers et al. 2023, arXiv:2305.14314, section 3",
        exact=True,
        elsewhere=True,
    ),
    Knob(
        name="offloaded activations",
        values=_offloading,
        words="inputs of recomputed blocks wait outside of the device",
        source="Ren et al. 2021, arXiv:2101.06840",
        exact=True,
        elsewhere=True,
    ),
    Knob(
        name="fetched layers",
        values=_fetching,
        words="weights of some blocks wait outside of the device and are fetched in every pass",
        source="Ren et al. 2021, arXiv:2101.06840",
        exact=True,
        elsewhere=True,
    ),
    Knob(
        name="quantised base",
        values=_quantising,
        words="the base in 8 or 4 bits: on the quickstart's task NF4 keeps 98 % of what LoRA gains on 16 bits",
        source="benchmarks/results/qlora.json; Dettmers et al. 2023, arXiv:2305.14314, table 4: 53.1 against 53.0 %",
    ),
    Knob(
        name="rank",
        values=_ranks,
        words="a lower rank: less can be learned; small tasks do not show it",
        source="Hu et al. 2021, arXiv:2106.09685, table 6: ranks 4 to 64 within half a point on WikiSQL",
        last=True,
    ),
    Knob(
        name="length",
        values=_lengths,
        words="longer rows are dropped, each counted and named",
        source="lorica data shows how many rows are how long",
        last=True,
    ),
)
