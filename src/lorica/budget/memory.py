"""Bytes of a training run, part by part, from shapes alone.

    weights      every parameter of the base in the type it is held in, quantised ones with their scales
    adapter + gradients     4 + 4 bytes a trained parameter: float32; 4 for a frozen factor
    optimizer    4 bytes for each number it keeps of a trained tensor: AdamW two of each element, Lion one, SGD one or
                 none, Adafactor one of each row and column
    activations  what the backward pass needs, for the T tokens of a micro-batch
    logits       the chunk of logits that exists at a time, and the gradient of the last hidden states
    buffers      gradients in flight through one block; the largest quantised weight made dense, and what methods
                 make of a weight's size; embeddings of which some rows are trained, and their gradients; merged weights
                 where a module reads its weights itself (experts, nn.MultiheadAttention)
    allocator    on a CPU, what the process holds beside its tensors (`kept_back.py`)
    context      what the process, or the CUDA context, holds before anything is loaded

    peak = weights + adapter + gradients + optimizer + context + buffers + allocator + activations + logits

Activations, gradients, logits and buffers are those of the worst moment of a step: at the head, in the backward pass of
the last block, in that of a block that is computed again, or at its end, when every gradient is there.

Saved by one block of our decoder for a token, in elements of the computing type (D width, Q and K widths of queries
and of keys, F inner width of the MLP): both norms' inputs 2 D, attention 2 Q + 2 K (queries, keys, values, its
output), gate and up 2 F, of which a gated MLP that is one function makes the product again.
On a CPU in bfloat16 attention to a prefix is two plain products, which keep H L scores and the repeated keys and
values 2 (Q - K) as well (H heads, L tokens of a document).  To that come what edits need, as their method declares it
(`keeps`): inputs of layers, D once for q, k and v and once for gate and up, and F for down; outputs; and other
numbers.  Blocks below the first that has an edit keep nothing.  A transformers block saves about two elements for each
that goes in or out of a linear, inputs among them.  With gradient checkpointing a block leaves its input D alone, and
one block at a time has the rest.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import wraps
from math import prod
from typing import Any, Literal, TypeVar
from weakref import WeakKeyDictionary

import torch

from lorica.adapter import Plan
from lorica.adapter.plan import PlannedEdit
from lorica.budget.kept_back import beside_pool, kept_back
from lorica.kernels import pool, reads_codes
from lorica.kernels.cross_entropy import CACHED, CHUNK_ROWS
from lorica.methods.contract import Keeps, Role
from lorica.site import Site

T = TypeVar("T")
BYTES = {
    str(kind).removeprefix("torch."): kind.itemsize for kind in vars(torch).values() if isinstance(kind, torch.dtype)
}
TRAINED = 4
"""Adapters are float32."""
Moments = Callable[[tuple[int, ...], Role], int]
"""Numbers that an optimiser keeps for a trained tensor of a shape and a role."""
READ_TOGETHER = {"attention": {"q", "k", "v"}, "mlp": {"gate", "up"}}
"""Roles whose layers have one input."""
LONG = 384
"""Tokens from which documents go through the flash kernel one by one, which keeps no scores."""
GATED = frozenset({"gate", "up", "down"})
CONTEXT = {"cpu": 500_000_000, "cuda": 500_000_000}
"""A process that has imported torch and transformers; a CUDA context with its kernels."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """How much is computed at a time: `tokens` of a micro-batch, documents of `length` tokens, and how many of the
    blocks are recomputed (None: all).  accumulated: gradients of other micro-batches of the step stand beside it.

    What is kept elsewhere than on the device (`elsewhere.py`): the optimiser's state beyond `page_state` bytes, the
    inputs of recomputed blocks where `offloaded`, and the linears of `host_layers` blocks.
    """

    tokens: int = 8192
    length: int = 2048
    recomputed: int | None = 0
    accumulated: bool = True
    page_state: int | None = None
    offloaded: bool = False
    host_layers: int = 0


@dataclass(frozen=True, kw_only=True)
class Memory:
    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    buffers: int
    allocator: int
    context: int

    @property
    def peak(self) -> int:
        return sum(asdict(self).values())

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "peak": self.peak}

    def __str__(self) -> str:
        return "\n".join(f"  {name:<12} {gigabytes(size):>10}" for name, size in self.to_dict().items())


def once_a_plan(of: Callable[[Plan], T]) -> Callable[[Plan], T]:
    """What depends on a plan alone, which never changes: a search for what fits asks for it a thousand times."""
    known: WeakKeyDictionary[Plan, T] = WeakKeyDictionary()

    @wraps(of)
    def found(plan: Plan) -> T:
        if plan not in known:
            known[plan] = of(plan)
        return known[plan]

    return found


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def two_moments(shape: tuple[int, ...], role: Role) -> int:
    """AdamW's."""
    return 2 * prod(shape)


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Bytes that come and go within a step, at one time of it."""

    activations: int
    gradients: int
    logits: int = 0
    in_backward: int = 0

    @property
    def held(self) -> int:
        return sum(asdict(self).values())


def memory_of(plan: Plan, work: Workload, kind: str, decoder: bool, moments: Moments = two_moments) -> Memory:
    """kind: cpu or cuda.  decoder: the base runs on our own decoder."""
    shapes = shapes_of(plan)
    width = shapes.width
    first = _first_block(plan, shapes.layers)
    block = _fused_block(shapes) if decoder else _plain_block(plan.base, shapes)
    of_edits = _more(plan)
    if decoder:
        of_edits += _inputs(plan) - _made_again(plan) - (_values(plan, work) if kind == "cpu" else 0)
    block += width * of_edits // max(shapes.layers - first, 1)
    prefixed = any(planned.edit.place == "keys_values_before" for planned in plan.edits)
    if decoder and prefixed and kind == "cpu" and width == BYTES["bfloat16"]:
        block += width * (shapes.heads * min(work.length, LONG) + 2 * (shapes.q - shapes.k))
    kept = 0 if work.recomputed is None else max(shapes.layers - max(work.recomputed, first), 0)
    recomputed = shapes.layers - first - kept
    head = _head(plan, shapes, decoder)
    gradients = TRAINED * plan.trainable_parameters
    at_once = head == "trained" or (head == "whole" and work.tokens > CHUNK_ROWS)
    of_head = TRAINED * min(shapes.head_parameters, plan.trainable_parameters) if at_once else 0
    embedding = _embedding(plan, shapes)
    # where one stands already, of the head or of another micro-batch, it comes beside that and is added
    late = 0 if work.accumulated or shapes.tied else TRAINED * embedding
    # a copy in the narrower type; in float32 its gradient, which is there as early
    read_head = shapes.head_parameters * width if head == "trained" else 0
    worst = max(
        _moments(
            inputs=work.tokens * shapes.d * width,
            one=work.tokens * block + _narrowed(plan) // max(shapes.layers - first, 1),
            kept=kept,
            recomputed=recomputed,
            logits=_logits(shapes, work, head, kind) + read_head,
            in_backward=work.tokens * width * (4 * shapes.d + (3 if decoder else 1) * shapes.f),
            gradients=gradients,
            before=gradients if work.accumulated else 0 if head == "trained" else of_head,
            behind_head=gradients if work.accumulated else of_head,
            of_head=read_head if width < TRAINED else 0,
            late=late,
            at_end=embedding * (width + TRAINED if width < TRAINED else TRAINED) - late,
        ),
        key=lambda moment: moment.held,
    )
    return Memory(
        weights=_held(plan),
        adapter=TRAINED * (plan.trainable_parameters + plan.frozen_parameters),
        gradients=worst.gradients,
        optimizer=TRAINED * sum(moments(tensor.shape, tensor.role) for tensor in plan.learned.values()),
        activations=worst.activations,
        logits=worst.logits,
        buffers=worst.in_backward + _shown(plan) + _merged(plan, work.recomputed) + _dense_again(plan, work, kind),
        allocator=0 if kind != "cpu" else _beside_tensors(plan, shapes, work, worst, recomputed),
        context=CONTEXT.get(kind, CONTEXT["cuda"]),
    )


def _moments(
    *,
    inputs: int,
    one: int,
    kept: int,
    recomputed: int,
    logits: int,
    in_backward: int,
    gradients: int,
    before: int,
    behind_head: int,
    of_head: int,
    late: int,
    at_end: int,
) -> Iterator[Moment]:
    """inputs, one: of a block, what it keeps when it is computed again, and all that it keeps; before, behind_head: the
    gradients that stand before the head, of other micro-batches, and before the backward pass reaches a block; of_head:
    the gradient of a trained head in a narrower type, made with the logits and scaled before it is widened; late: that
    of an embedding, which comes last; at_end: what stands beside it then.

    The last blocks are kept, and theirs are gone when the first ones are computed again; the gradients of a block come
    with its backward pass.
    """
    whole = kept * one + recomputed * inputs
    behind = max(behind_head, gradients * kept // max(kept + recomputed, 1))
    yield Moment(activations=whole, logits=logits + of_head, gradients=before)
    if of_head:
        yield Moment(activations=whole, logits=of_head, gradients=behind_head)
    if kept:
        yield Moment(activations=whole, in_backward=in_backward, gradients=behind_head)
    if recomputed:
        yield Moment(activations=recomputed * inputs + one, in_backward=in_backward, gradients=behind)
    if kept or recomputed:
        yield Moment(activations=one, in_backward=in_backward, gradients=gradients - late)
    yield Moment(activations=0, in_backward=at_end, gradients=gradients)


def held_bytes(site: Site) -> int:
    return site.held_bytes or prod(site.shape) * BYTES[site.dtype]


@once_a_plan
def _held(plan: Plan) -> int:
    return sum(held_bytes(site) for site in plan.base if site.kind == "parameter")


@once_a_plan
def _kept(plan: Plan) -> tuple[tuple[PlannedEdit, Keeps], ...]:
    return tuple((planned, planned.method.keeps(planned.edit)) for planned in plan.edits)


def _dense_again(plan: Plan, work: Workload, kind: str) -> int:
    """The most of a weight's size that stands at a time: a quantised one made dense, for one product or for a method
    that reads it, and what that makes of it."""
    made = {p.site.weight: keeps.like_weight for p, keeps in _kept(plan) if keeps.like_weight is not None}

    def at_once(site: Site) -> int:
        in_codes = site.name not in made and _is_in_c(site, work)
        return made.get(site.name, 0) + (bool(site.stored) and not (kind == "cpu" and in_codes))

    weights = (site for site in plan.base if site.kind == "parameter" and (site.stored or site.name in made))
    return max((at_once(site) * prod(site.shape) * BYTES[site.dtype] for site in weights), default=0)


def _is_in_c(site: Site, work: Workload) -> bool:
    """Whether products on a CPU are those in C, which read a quantised weight as it is stored."""
    return reads_codes(site.shape, work.tokens, getattr(torch, site.dtype))


def _first_block(plan: Plan, blocks: int) -> int:
    """Where the backward pass ends: at the first block that an edit is in, and at the very first where an edit is
    outside the blocks.  A head is behind them all."""
    behind = (blocks if "head" in p.site.roles else 0 for p in plan.edits if p.site.layer is None)
    return min([*behind, *(p.site.layer for p in plan.edits if p.site.layer is not None)], default=0)


@once_a_plan
def _inputs(plan: Plan) -> int:
    """Elements a token of the layers in blocks whose input is needed, once where several read the same; o reads the
    output of attention, which is kept in any case."""
    linears = {site.weight: site for site in plan.base if site.kind == "linear" and site.layer is not None}
    read: dict[tuple[str, str], int] = {}
    for planned, keeps in _kept(plan):
        edited = planned.site.name if planned.site.kind == "parameter" else planned.site.weight
        if keeps.inputs and (site := linears.get(edited)) and "o" not in site.roles:
            group = next((name for name, roles in READ_TOGETHER.items() if roles & set(site.roles)), site.leaf)
            read[site.name.rpartition(".")[0], group] = site.d_in
    return sum(read.values())


@once_a_plan
def _made_again(plan: Plan) -> int:
    """Elements a token that gated MLPs make again in the backward pass, where all of their linears fuse: what `down`
    reads, and outputs of gate and up, which are kept in any case."""
    fused: dict[str, dict[str, tuple[Site, Keeps]]] = {}
    for p, keeps in _kept(plan):
        roles = GATED.intersection(p.site.roles)
        if keeps.fuses and p.edit.place == "around" and p.site.layer is not None and len(roles) == 1:
            fused.setdefault(p.site.owner, {})[next(iter(roles))] = p.site, keeps
    whole = [mlp for mlp in fused.values() if mlp.keys() == GATED]
    outputs = (mlp[role][0].d_out for mlp in whole for role in ("gate", "up") if mlp[role][1].outputs)
    return sum(mlp["gate"][0].d_out for mlp in whole) + sum(outputs)


@once_a_plan
def _narrowed(plan: Plan) -> int:
    """Bytes of what is in blocks and trained, in the type it is read in where that is narrower than float32: each pass
    makes such a copy.  Weights that are trained whole, and the factors of methods."""
    linears = {site.weight: site for site in plan.base if site.kind == "linear" and site.layer is not None}
    whole = [linears[p.site.name] for p in plan.edits if p.edit.place == "instead" and p.site.name in linears]
    around = [p for p in plan.edits if p.edit.place == "around" and p.site.layer is not None]
    factors = [(p.site.dtype, _read_of(p.site, tensor.shape)) for p in around for tensor in p.tensors.values()]
    read = [*((site.dtype, prod(site.shape)) for site in whole), *factors]
    return sum(count * BYTES[dtype] for dtype, count in read if BYTES[dtype] < TRAINED)


def _embedding(plan: Plan, s: "Shapes") -> int:
    """Parameters of an embedding that is trained whole; where it is the head as well, both gradients meet in it."""
    matrix = (s.vocabulary, s.d)
    return sum(prod(matrix) for p in plan.edits if p.whole and p.site.shape == matrix and "head" not in p.site.roles)


def _read_of(site: Site, shape: tuple[int, ...]) -> int:
    """Elements of a factor that a site reads: of one that sites share, a part no wider than itself."""
    return prod(min(size, max(site.d_in, site.d_out)) for size in shape)


@once_a_plan
def _more(plan: Plan) -> int:
    """Elements a token of outputs in blocks that are needed, and of numbers beside them."""
    return sum(site.d_out * keeps.outputs + keeps.numbers for site, keeps in _in_blocks(plan))


def _in_blocks(plan: Plan) -> Iterator[tuple[Site, Keeps]]:
    return ((p.site, keeps) for p, keeps in _kept(plan) if p.site.layer is not None)


def _values(plan: Plan, work: Workload) -> int:
    """Elements a token of outputs of v that are kept as attention's values in any case: of products in C without a
    bias, those before a gain are made of them again."""
    return sum(
        site.d_out
        for site, keeps in _in_blocks(plan)
        if "v" in site.roles and keeps.fuses and keeps.outputs and not site.bias and _is_in_c(site, work)
    )


@once_a_plan
def _shown(plan: Plan) -> int:
    """Matrices that are put together in each forward pass because a part of their rows is trained, and the gradient
    of each."""
    parts = [p for p in plan.edits if p.edit.place == "instead" and not p.whole]
    return sum(2 * prod(p.site.shape) * BYTES[p.site.dtype] for p in parts)


def _merged(plan: Plan, recomputed: int | None) -> int:
    """Adapted weights that are put together in each forward pass because their module reads them itself.  Each is kept
    for the backward pass unless its block is computed again; one has its gradient, and is summed in float32."""
    sites = [p.site for p in plan.edits if p.edit.place == "around" and p.site.part_of]
    if not sites:
        return 0
    blocks: dict[int | None, int] = {}
    for site in sites:
        blocks[site.layer] = blocks.get(site.layer, 0) + prod(site.shape) * BYTES[site.dtype]
    sizes = list(blocks.values())
    again = sizes if recomputed is None else sizes[:recomputed]
    largest = max(sites, key=lambda site: prod(site.shape))
    narrow = BYTES[largest.dtype] < BYTES["float32"]
    one = prod(largest.shape) * (BYTES[largest.dtype] + (2 * BYTES["float32"] if narrow else 0))
    return sum(sizes[len(again) :]) + max(again, default=0) + one


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Widths of a stack of equal blocks, read off its sites: d, q, k and f as in the file's own words; 0 if absent."""

    layers: int
    d: int
    q: int
    k: int
    f: int
    heads: int
    vocabulary: int
    width: int
    linear_parameters: int
    tied: bool

    @classmethod
    def of(cls, sites: Sequence[Site]) -> "Shapes":
        linears = [site for site in sites if site.kind == "linear"]
        blocks = [site for site in linears if site.layer is not None]
        dtypes = [site.dtype for site in linears] or ["float32"]
        return cls(
            layers=len({site.layer for site in blocks}),
            d=max((site.d_in for site in blocks if {"q", "gate", "fc1"} & set(site.roles)), default=_widest(blocks)),
            q=_width(blocks, "q"),
            k=_width(blocks, "k"),
            f=max(_width(blocks, "up"), _width(blocks, "fc1")),
            heads=_width(blocks, "q") // _head_width(sites),
            vocabulary=_width(linears, "head"),
            width=BYTES[max(set(dtypes), key=dtypes.count)],
            linear_parameters=sum(prod(site.shape) for site in linears if "head" not in site.roles),
            tied=not any(site.kind == "parameter" and "head" in site.roles for site in sites),
        )

    @property
    def head_parameters(self) -> int:
        return self.vocabulary * self.d


@once_a_plan
def shapes_of(plan: Plan) -> Shapes:
    return Shapes.of(plan.base)


def _width(sites: Iterable[Site], role: str) -> int:
    """d_out of the sites with a role; a fused layer's is shared by its roles."""
    return max((site.d_out // len(site.roles) for site in sites if role in site.roles), default=0)


def _head_width(sites: Iterable[Site]) -> int:
    return max((site.shape[1] for site in sites if site.kind == "attention"), default=1)


def _widest(sites: Sequence[Site]) -> int:
    return max((site.d_in for site in sites), default=0)


def _fused_block(s: Shapes) -> int:
    return s.width * (2 * s.d + 2 * s.q + 2 * s.k + 2 * s.f)


def _plain_block(sites: Sequence[Site], s: Shapes) -> int:
    through = sum(site.d_in + site.d_out for site in sites if site.kind == "linear" and site.layer is not None)
    return 2 * s.width * through // max(s.layers, 1)


def _beside_tensors(plan: Plan, s: Shapes, work: Workload, worst: Moment, recomputed: int) -> int:
    keeps = [keeps for p, keeps in _kept(plan) if p.edit.place == "around" and p.site.layer is not None]
    one_function = all(each.fuses for each in keeps)
    gained = one_function and any(each.outputs for each in keeps)
    if pool().lacking is None:
        products = "bfloat16" if s.width < TRAINED else "float32"
        weights = (site for site in plan.base if site.kind == "parameter" and site.stored)
        made = any(each.like_weight for each in keeps) or not all(_is_in_c(site, work) for site in weights)
        return beside_pool(worst.held, len(plan.learned), products, length=work.length, made=made)
    return kept_back(
        activations=worst.activations,
        block=[(n, work.tokens * width * s.width) for n, width in ((2, s.d), (2, s.q), (2, s.k), (3, s.f))],
        recomputed=recomputed,
        length=work.length if s.width == BYTES["bfloat16"] else 0,
        apart=not one_function,
        gained=gained,
    )


Head = Literal["frozen", "trained", "whole"]


def _head(plan: Plan, s: Shapes, decoder: bool) -> Head:
    """How the logits are made: in chunks where the head is frozen or on our decoder, and all at once where that of a
    transformers model is edited.  A head that is tied is trained with its embedding."""
    matrix = (s.vocabulary, s.d)
    edited = any("head" in p.site.roles or (p.whole and p.site.shape == matrix) for p in plan.edits)
    return "frozen" if not edited else "trained" if decoder else "whole"


def _logits(s: Shapes, work: Workload, head: Head, kind: str) -> int:
    """A chunk in its computing type, in whose place its gradient comes, and its softmax in float32, on a CPU in pieces
    that fit the cache.  Whole: logits, their float32 copy and its gradient."""
    chunk, hidden = min(CHUNK_ROWS, work.tokens) * s.vocabulary, 3 * work.tokens * s.d * s.width
    if head == "whole":
        return work.tokens * s.vocabulary * (s.width + 8)
    softmax = 4 * min(CACHED, chunk) if kind == "cpu" else 4 * chunk
    return chunk * s.width + softmax + hidden
