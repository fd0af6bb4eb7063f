"""How many blocks are computed again in the backward pass: what the config says, or what memory demands."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from lorica.adapter import Plan
from lorica.budget import Machine, Workload, fewest_recomputed, machine
from lorica.budget.memory import CONTEXT, Shapes
from lorica.models import recomputable
from lorica.models.causal_lm import CausalLM
from lorica.train.config import TrainConfig

if TYPE_CHECKING:
    from lorica.adapter import Attached


def workload(config: TrainConfig, plan: Plan, model: nn.Module, longest: int, place: Machine) -> Workload:
    """What is computed at a time, of rows of `longest` tokens at most."""
    work = Workload(tokens=config.at_once(longest), length=longest)
    return replace(work, recomputed=_blocks(config, plan, model, work, place))


def _blocks(config: TrainConfig, plan: Plan, model: nn.Module, work: Workload, place: Machine) -> int | None:
    asked = config.gradient_checkpointing
    if asked != "auto":
        return None if asked is True else int(asked)
    blocks = recomputable(model)
    some = range(1, blocks) if blocks == Shapes.of(plan.base).layers else ()  # two stacks are counted in one row
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
def recomputing(attached: "Attached", blocks: int | None) -> Iterator[None]:
    """None: all of them."""
    if blocks == 0:
        yield
        return
    undo = attached.checkpoint(blocks)
    try:
        yield
    finally:
        undo()
