"""The contract of a task: examples become labelled batches, and the loss is a sum over the task's units.

    loss of an optimiser step = sum over its micro-batches of loss(batch)  /  sum over them of units(batch)

so a step means the same however it is cut into micro-batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lorica.data import Dataset, Example


@dataclass(frozen=True)
class Draw:
    """Under which seed and optimiser step (from 1) dropout draws its masks."""

    seed: int
    step: int


class Task(Protocol):
    """`unit` names what the loss is divided by: label tokens, rows or pairs."""

    @property
    def name(self) -> str: ...

    @property
    def unit(self) -> str: ...

    def batch(self, examples: Sequence[Example], *, device: torch.device, draw: Draw | None = None) -> Any:
        """What `loss` takes for these examples; `draw` is None where nothing is dropped (evaluation)."""
        ...

    def units(self, batch: Any) -> int:
        """Label tokens, rows or pairs of a batch."""
        ...

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The SUM of the losses of the batch's units, a scalar: float32, or float64 where the model is."""
        ...

    def evaluate(self, model: nn.Module, dataset: Dataset, *, micro_batch_tokens: int) -> dict[str, float]:
        """`loss` (per unit) and the task's metrics, under the model's present mode and without gradients."""
        ...
