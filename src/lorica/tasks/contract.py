"""The contract of a task: rows become examples, examples labelled batches, and the loss is a sum over the task's units.

    loss of an optimiser step = sum over its micro-batches of loss(batch)  /  sum over them of units(batch)

so a step means the same however it is cut into micro-batches.  What the task needs of the base, it says before the base
is loaded:

    task = task.settled(rows, held=...)  what only the rows tell: the labels
    base with task.head()                None: the base as it is
    task.lessons(config, reader)         what turns rows into examples, with what the base reads rows with
    batch, units, loss, evaluate         training and scoring;  answer: what it says to one text
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from lorica.data import DataConfig, Dataset, Example, Renderer, Row, Teacher, Tokenizer
from lorica.errors import DataError, RequestError
from lorica.models.heads import Head, HeadKind


@dataclass(frozen=True)
class Draw:
    """Under which seed and optimiser step (from 1) dropout draws its masks."""

    seed: int
    step: int


@dataclass(frozen=True, kw_only=True)
class Reader:
    """What a base reads rows with.

    plain       its tokenizer as the data room takes it, which adds no special tokens; None for bases of images
    template    its chat template
    tokenizer   transformers' own, which writes texts, pairs and words as the base was taught to read them
    limit       the longest row, in tokens
    config      transformers' config of the base; `folder`: where its other files are, for a base from a folder or hub
    """

    plain: Tokenizer | None
    template: Renderer | None
    tokenizer: Any
    limit: int
    config: Any = None
    folder: str | None = None


class Task(BaseModel):
    """A frozen config that is also the recipe's entry: `task: NAME` or `task: {name: NAME, ...}`.

    `unit` names what the loss is divided by: label tokens, rows or pairs.  `head_kind` is the head that the base gets;
    `metrics` are the scores of `evaluate` that a report shows; `reads_text`: a base without a tokenizer is an error.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]
    unit: ClassVar[str]
    head_kind: ClassVar[HeadKind | None] = None
    reads_text: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = ()
    supervised: ClassVar[bool] = True
    """Whether answers are given: what is known of learning rates is of such tasks."""
    compares: ClassVar[bool] = False
    """Whether the loss reads what the bare base says of the rows, which `compared` finds out."""

    def to_entry(self) -> str | dict[str, Any]:
        """As a recipe has it: the name alone where nothing else is said."""
        fields = {field: getattr(self, field) for field in type(self).model_fields}
        given = {
            field: list(value) if isinstance(value, tuple) else value
            for field, value in fields.items()
            if value != type(self).model_fields[field].default
        }
        return {"name": self.name, **given} if given else self.name

    @property
    def needs_rows(self) -> bool:
        """Whether `settled` has something to find in the rows."""
        return False

    @property
    def writes_on(self) -> bool:
        """Whether its models write text on from a prompt; those of other tasks `answer` one row."""
        return self.head_kind is None

    @property
    def prompt_field(self) -> str | None:
        """The one field that a row without its answer needs; None where there are several."""
        return None

    def settled(self, rows: Sequence[Row], known: Sequence[str] = (), held: Sequence[Row] = ()) -> "Task":
        """The task with what its rows tell, those that are `held` out beside those that are trained on; `known` are the
        labels that the checkpoint was taught, if any."""
        return self

    def head(self, seed: int = 0) -> Head | None:
        """The head that the base gets, drawn from `seed`."""
        return None

    def sources(self, config: DataConfig) -> DataConfig:
        """The config with its sources as this task reads them."""
        return config

    def lessons(self, config: DataConfig, reader: Reader) -> Teacher:
        """What turns rows into the examples of this task.  DataError where the config does not fit it."""
        raise NotImplementedError

    def compared(self, base: nn.Module, dataset: Dataset, *, micro_batch_tokens: int) -> Dataset:
        """The data set with what the bare base says of its rows; the very same where the task asks nothing of it."""
        return dataset

    def told(self, example: Any) -> str | None:
        """The answer that an example teaches, in words; None where it is the tokens that are learned."""
        return None

    def batch(self, examples: Sequence[Example], *, device: torch.device, draw: Draw | None = None) -> Any:
        """What `loss` takes for these examples; `draw` is None where nothing is dropped (evaluation)."""
        raise NotImplementedError

    def units(self, batch: Any) -> int:
        """Label tokens, rows or pairs of a batch."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The SUM of the losses of the batch's units, a scalar: float32, or float64 where the model is."""
        raise NotImplementedError

    def evaluate(self, model: nn.Module, dataset: Dataset, *, micro_batch_tokens: int) -> dict[str, float]:
        """`loss` (per unit) and the task's metrics, under the model's present mode and without gradients."""
        raise NotImplementedError

    def answer(self, model: nn.Module, reader: Reader, fields: Mapping[str, Any]) -> str:
        """What the model says to one row without its answer."""
        raise RequestError(f"{self.name}: such a model gives no answer to a prompt; score it with lorica eval")


def require_rows_alone(config: DataConfig, task: str) -> None:
    """DataError where the config says how prompts are written, which this task has none of."""
    said = {"shape": config.shape, "template": config.template}
    problems = [f"data.{name}: the task {task} reads fields of its own; leave it out" for name in said if said[name]]
    if problems:
        raise DataError.of(problems)
