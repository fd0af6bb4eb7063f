"""What a step of each method costs on one base, measured side by side on this machine, without the optimiser's update.

Every round takes each method in turn, so that a slow minute of the machine falls on all alike.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

from lorica.adapter import Attached, attach
from lorica.data import Example
from lorica.methods import Method
from lorica.methods.contract import Life
from lorica.models import context_limit
from lorica.tasks import TASKS, Draw

ROWS, LENGTH, ROUNDS = 8, 256, 5
STEPS = 100
"""Of the run that a method with a life of its own is told it is in."""
TRAINED_BYTES = 16
"""Of a trained parameter in float32: value, gradient and AdamW's two moments."""


@dataclass
class Cost:
    """Seconds of a forward and backward pass of ROWS rows of LENGTH tokens and of what the method itself does in a
    step, one a round; bytes kept between the passes, and bytes of what is trained."""

    seconds: list[float] = field(default_factory=list)
    kept: int = 0
    trained: int = 0

    @property
    def step(self) -> float:
        return median(self.seconds)

    @property
    def memory(self) -> int:
        return self.kept + self.trained


def costs(model: nn.Module, methods: Mapping[str, Method]) -> dict[str, Cost]:
    """By the names of the methods; the model is as it was afterwards."""
    examples = _examples(model)
    found = {name: Cost() for name in methods}
    for _ in range(ROUNDS):
        for name, method in methods.items():
            attached = attach(model, method)
            try:
                _measure(attached, examples, found[name])
            finally:
                attached.detach()
    return found


def _examples(model: nn.Module) -> list[Example]:
    length = min(LENGTH, (context_limit(model) or LENGTH) // 2)
    draw = np.random.default_rng(0)
    rows = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    labels = np.arange(length) > 0
    return [Example(draw.integers(0, rows, length, np.int32), labels, row, "random") for row in range(ROWS)]


def _measure(attached: Attached, examples: list[Example], cost: Cost) -> None:
    """The first pass, which builds kernels and caches, counts bytes; the second is timed."""
    attached.train(base=False)
    with _kept_bytes(attached.model.parameters()) as kept:
        _pass(attached, examples)
    life = {} if attached.life is None else attached.life.state_dict()
    cost.kept = sum(kept.values()) + sum(tensor.nbytes for tensor in life.values())
    cost.trained = TRAINED_BYTES * attached.trainable_parameters
    began = time.perf_counter()
    _pass(attached, examples)
    cost.seconds.append(time.perf_counter() - began)


def _pass(attached: Attached, examples: list[Example]) -> None:
    task, device = TASKS["causal_lm"], next(attached.model.parameters()).device
    batch = task.batch(examples, device=device, draw=Draw(0, 1))
    task.loss(attached.model, batch).backward()
    if attached.life is not None:
        _live(attached.life)
    if device.type == "cuda":
        torch.cuda.synchronize()
    attached.model.zero_grad(set_to_none=True)


def _live(life: Life) -> None:
    """What AdaLoRA adds to a step."""
    life.begin(STEPS)
    if (extra := life.extra_loss()) is not None:
        extra.backward()
    life.after_step(1, STEPS)


@contextmanager
def _kept_bytes(parameters: Iterable[Tensor]) -> Iterator[dict[int, int]]:
    """Bytes of what autograd keeps in the block, by storage; parameters are there anyway."""
    there = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept
