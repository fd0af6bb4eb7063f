"""What a run keeps elsewhere than on its device: in pinned host memory, or where the device is the CPU in a file.

    optimizer    beyond `page_state` bytes; the state of the largest tensor is on the device in any case
    activations  the inputs of recomputed blocks, T D elements each, but for the block that is computed
    weights      linears of `host_layers` blocks; the device has room for the largest of them instead, and on a card for
                 the next one as well

None of it changes a bit of the results.  Each byte crosses over in every step, weights in every pass over their block.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from lorica.adapter import Plan
from lorica.budget.memory import (
    TRAINED,
    Memory,
    Moments,
    Workload,
    gigabytes,
    held_bytes,
    memory_of,
    once_a_plan,
    shapes_of,
)
from lorica.models import hosted
from lorica.site import Site


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """Bytes that are kept there."""

    optimizer: int = 0
    activations: int = 0
    weights: int = 0

    @property
    def total(self) -> int:
        return sum(asdict(self).values())

    def __str__(self) -> str:
        return ", ".join(f"{name} {gigabytes(size)}" for name, size in asdict(self).items() if size)


def elsewhere(memory: Memory, plan: Plan, work: Workload, moments: Moments) -> Elsewhere:
    """Of the bytes that `memory_of` gives."""
    return Elsewhere(
        optimizer=0 if work.page_state is None else _paged(memory, plan, work.page_state, moments),
        activations=_inputs(memory, plan, work) if work.offloaded else 0,
        weights=sum(map(held_bytes, _hosted(plan, work.host_layers))),
    )


def moved(memory: Memory, away: Elsewhere, plan: Plan, work: Workload, kind: str) -> Memory:
    """What is left on the device.  What its allocator keeps back follows what comes and goes."""
    largest = max(map(held_bytes, _hosted(plan, work.host_layers)), default=0)
    comes = memory.activations + memory.logits + memory.buffers
    return replace(
        memory,
        weights=memory.weights - away.weights,
        optimizer=memory.optimizer - away.optimizer,
        activations=memory.activations - away.activations,
        buffers=memory.buffers + largest * (1 if kind == "cpu" else 2),
        allocator=memory.allocator * (comes - away.activations) // max(comes, 1),
    )


def on_device(plan: Plan, work: Workload, kind: str, decoder: bool, moments: Moments) -> Memory:
    """`memory_of` without what is kept elsewhere."""
    memory = memory_of(plan, work, kind, decoder, moments)
    return moved(memory, elsewhere(memory, plan, work, moments), plan, work, kind)


def _paged(memory: Memory, plan: Plan, allowed: int, moments: Moments) -> int:
    largest = max((TRAINED * moments(tensor.shape, tensor.role) for tensor in plan.learned.values()), default=0)
    return max(memory.optimizer - max(allowed, largest), 0)


def _inputs(memory: Memory, plan: Plan, work: Workload) -> int:
    shapes = shapes_of(plan)
    again = shapes.layers if work.recomputed is None else min(work.recomputed, shapes.layers)
    return min(max(again - 1, 0) * work.tokens * shapes.d * shapes.width, memory.activations)


def _hosted(plan: Plan, count: int) -> Iterator[Site]:
    """Weights of the linears in blocks that are fetched."""
    blocks = set(hosted(shapes_of(plan).layers, count))
    return (site for layer, site in _weights(plan) if layer in blocks)


@once_a_plan
def _weights(plan: Plan) -> tuple[tuple[int | None, Site], ...]:
    """The weight of each linear, with the number of its block."""
    layers = {site.weight: site.layer for site in plan.base if site.kind == "linear"}
    return tuple((layers[site.name], site) for site in plan.base if site.kind == "parameter" and site.name in layers)
