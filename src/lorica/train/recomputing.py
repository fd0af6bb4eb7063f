"""How many blocks are computed again in the backward pass, or fetched: what the config says, or what memory demands."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from torch import nn

from lorica.adapter import Plan
from lorica.budget import Machine, Workload, fewest_fetched, fewest_recomputed, machine
from lorica.budget.memory import CONTEXT, shapes_of
from lorica.kernels.elsewhere import Store
from lorica.models import recomputable
from lorica.models.causal_lm import CausalLM
from lorica.train.config import TrainConfig

if TYPE_CHECKING:
    from lorica.adapter import Attached


def workload(
    config: TrainConfig, plan: Plan, model: nn.Module, longest: int, place: Machine, host_layers: int | Literal["auto"]
) -> Workload:
    """What is computed at a time, of rows of `longest` tokens at most, and what is kept elsewhere.

    Recomputing a block costs less than fetching its weights, so that `auto` fetches where all are recomputed and it
    does not fit yet.
    """
    work = Workload(
        tokens=config.at_once(longest),
        length=longest,
        accumulated=config.accumulates(longest),
        page_state=config.page_state,
        offloaded=config.offload_activations,
        host_layers=0 if host_layers == "auto" else host_layers,
    )
    work = replace(work, recomputed=_blocks(config, plan, model, work, place))
    if host_layers != "auto" or not isinstance(model, CausalLM):
        return work
    layers, moments = shapes_of(plan).layers, config.optimizer.elements
    return replace(work, host_layers=fewest_fetched(plan, work, place, layers, decoder=True, moments=moments))


def _blocks(config: TrainConfig, plan: Plan, model: nn.Module, work: Workload, place: Machine) -> int | None:
    asked = config.gradient_checkpointing
    if asked != "auto":
        return None if asked is True else int(asked)
    blocks = recomputable(model)
    some = range(1, blocks) if blocks == shapes_of(plan).layers else ()  # two stacks are counted in one row
    counts = [0, *some, None] if blocks else [0]
    decoder = isinstance(model, CausalLM)
    return fewest_recomputed(plan, work, place, counts, decoder=decoder, moments=config.optimizer.elements)


def machine_of(model: nn.Module) -> Machine:
    """The device of a model, which is this machine's for shapes alone: what is free, and what of the forecast the model
    holds already."""
    device = next(model.parameters()).device
    if device.type == "meta":
        return machine()
    here = machine(str(device))
    held = sum(tensor.nbytes for tensor in {*model.parameters(), *model.buffers()} if tensor.device == device)
    return replace(here, available=here.available + held + CONTEXT[here.kind]) if here.available else here


@contextmanager
def recomputing(attached: "Attached", blocks: int | None, store: Store | None) -> Iterator[None]:
    """None: all of them.  store: where their inputs wait, None: on the device."""
    if blocks == 0:
        yield
        return
    undo = attached.checkpoint(blocks, store)
    try:
        yield
    finally:
        undo()
