"""plan: what would be trained and what it costs, from shapes alone."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from lorica import adapter, budget
from lorica.adapter import Plan
from lorica.adapter.plan import Methods
from lorica.api.tasked import settled, with_head
from lorica.api.vocabulary import with_tokens
from lorica.budget import Forecast, Machine, Training, Workload
from lorica.data.size import rows_about
from lorica.errors import RequestError
from lorica.models import context_limit, fetched_layers, load_tokenizer, shapes_only
from lorica.models.causal_lm import CausalLM
from lorica.models.fetched import refuse_foreign
from lorica.models.numerics import numerics
from lorica.recipe import Recipe
from lorica.tasks import TASKS, Task
from lorica.train import TrainConfig, outlook
from lorica.train.optimizers import ADAMW_RATE
from lorica.train.recomputing import machine_of, workload


def plan(
    base: nn.Module | Recipe,
    method: Methods | None = None,
    *,
    train: TrainConfig | None = None,
    memory: float | None = None,
    device: str | None = None,
) -> Forecast:
    """Coverage, parameters and memory of a method on a model, or of a whole recipe, whose weights are not read; and
    warnings of settings that are known to fail.

    train: how a method given beside a model will be trained; without it no warnings are about rates and steps.
    A recipe whose task does not name its labels has its rows read for them.
    memory: bytes to plan for instead of this machine's.  device: a card by name, "RTX 3060 Ti".

    Raises `TargetError` where the method does not fit.
    """
    if isinstance(base, Recipe):
        draft = drawn(base)
        return draft.forecast(draft.place(memory, device), corrected=device is None)
    if method is None:
        raise RequestError("plan: give a method beside the model, as in plan(model, lorica.LoRA(r=8))")
    config = train or TrainConfig()
    length = _length(base, config, None)
    draft = Draft(
        shapes=base,
        planned=adapter.plan(base, with_head(base, method)),
        config=config,
        length=length,
        training=None if train is None else training_of(train, length, None, TASKS["causal_lm"]),
        host_layers=fetched_layers(base),
    )
    place = machine_of(base) if memory is None and device is None else draft.place(memory, device)
    return draft.forecast(place, corrected=device is None)


@dataclass(frozen=True, eq=False, kw_only=True)
class Draft:
    """The shapes of a base, the plan of its methods on them, and how they will be trained: what forecasts are made of.

    length: of the longest row.  own: the device that a recipe names.
    """

    shapes: nn.Module
    planned: Plan
    config: TrainConfig
    length: int
    training: Training | None
    host_layers: int | Literal["auto"]
    own: str | None = None

    def place(self, memory: float | None = None, device: str | None = None) -> Machine:
        """The recipe's own device, that with other memory, or a card by name."""
        if device is None:
            return budget.machine(self.own, memory)
        card = budget.machine_called(device)
        return card if memory is None else replace(card, available=int(memory))

    def work(self, place: Machine) -> Workload:
        return workload(self.config, self.planned, self.shapes, self.length, place, self.host_layers)

    def forecast(self, place: Machine, work: Workload | None = None, *, corrected: bool) -> Forecast:
        """On a machine; corrected: it is this one, so that what was measured here counts."""
        work = self.work(place) if work is None else work
        flops = budget.flops_a_token(self.planned, work)
        rows = None if self.training is None else self.training.rows
        known, note = budget.correction(self.key(), flops) if corrected else (None, None)
        if corrected and (known is None or known.tflops is None) and _here(place.kind):
            place = budget.rated(place, self._dtype())
        return budget.forecast(
            self.planned,
            work,
            place,
            decoder=isinstance(self.shapes, CausalLM),
            moments=self.config.optimizer.elements,
            training=self.training,
            remarks=(*outlook.remarks(self.config, self.planned, rows), *([] if note is None else [note])),
            correction=known,
        )

    def key(self) -> dict[str, Any]:
        """What a measurement of this base on this machine is kept under."""
        known = numerics(self.shapes)
        return {**{name: known[name] for name in MEASURED_UNDER}, "device": budget.machine(self.own).name}

    def _dtype(self) -> torch.dtype:
        kinds = Counter(tensor.dtype for tensor in self.shapes.parameters() if tensor.is_floating_point())
        return kinds.most_common(1)[0][0] if kinds else torch.float32


MEASURED_UNDER = ("forward", "dtype", "stored", "threads", "cpu", "versions")


def _here(kind: str) -> bool:
    return kind == "cpu" or (kind == "cuda" and torch.cuda.is_available())


def drawn(recipe: Recipe) -> Draft:
    """From the config of the base alone; a recipe whose task does not name its labels has its rows read for them."""
    task = settled(recipe.task, recipe.data, recipe.model.source)
    base = recipe.model
    shapes: Any = shapes_only(
        base.source, base.dtype, head=task.head(), quantize=base.quantize, double_quant=base.double_quant
    )
    if base.host_layers and base.host_layers != "auto" and not isinstance(shapes, CausalLM):
        refuse_foreign(base.source)
    if recipe.model.add_tokens:
        shapes.tokenizer = load_tokenizer(recipe.model.source)
    methods = with_tokens(shapes, recipe.model.add_tokens, recipe.method)
    length = _length(shapes, recipe.train, recipe.data.max_length)
    return Draft(
        shapes=shapes,
        planned=adapter.plan(shapes, with_head(shapes, methods)),
        config=recipe.train,
        length=length,
        training=training_of(recipe.train, length, rows_about(recipe.data), task),
        host_layers=base.host_layers,
        own=base.device,
    )


def require_room(recipe: Recipe) -> None:
    """NoRoomError where the weights and what is trained are more than the device has, whatever the rows are."""
    draft = drawn(recipe)
    place = draft.place()
    memory = draft.forecast(place, corrected=False).memory
    held = memory.weights + memory.adapter + memory.gradients + memory.optimizer
    budget.require_room(held, place, "the base with what is trained of it, without a single row,")


def _length(model: nn.Module, config: TrainConfig, max_length: int | None) -> int:
    """A row of unknown length is taken to be as long as the base or the micro-batch allows."""
    return max_length or min(context_limit(model) or config.micro_batch_tokens, config.micro_batch_tokens)


def training_of(config: TrainConfig, length: int, rows: int | None, task: Task) -> Training:
    """What of a config is known to succeed or fail, for rows of `length` tokens at most."""
    usual = config.optimizer.usual_rate if task.supervised else None
    return Training(
        learning_rate=config.learning_rate,
        optimizer=config.optimizer.name,
        pace=None if usual is None else usual / ADAMW_RATE,
        lora_plus_ratio=config.lora_plus_ratio,
        rows_per_step=config.rows_per_step or (config.tokens_per_step or 0) // length,
        rows=rows,
    )
