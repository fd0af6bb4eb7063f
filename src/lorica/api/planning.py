"""plan: what would be trained and what it costs, from shapes alone."""

from dataclasses import replace
from typing import Any, Literal

from torch import nn

from lorica import adapter, budget
from lorica.adapter.plan import Methods
from lorica.api.tasked import settled, with_head
from lorica.api.vocabulary import with_tokens
from lorica.budget import Forecast, Training
from lorica.data.size import rows_about
from lorica.errors import RequestError
from lorica.models import context_limit, fetched_layers, load_tokenizer, shapes_only
from lorica.models.causal_lm import CausalLM
from lorica.models.fetched import refuse_foreign
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
        return _of_recipe(base, memory, device)
    if method is None:
        raise RequestError("plan: give a method beside the model, as in plan(model, lorica.LoRA(r=8))")
    config = train or TrainConfig()
    length = _length(base, config, None)
    training = None if train is None else training_of(train, length, None, TASKS["causal_lm"])
    place = machine_of(base) if memory is None and device is None else _place(None, memory, device)
    return _forecast(base, method, config, length, training, place, fetched_layers(base))


def _place(own: str | None, memory: float | None, device: str | None) -> budget.Machine:
    if device is None:
        return budget.machine(own, memory)
    card = budget.machine_called(device)
    return card if memory is None else replace(card, available=int(memory))


def _of_recipe(recipe: Recipe, memory: float | None, device: str | None) -> Forecast:
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
    place = _place(recipe.model.device, memory, device)
    length = _length(shapes, recipe.train, recipe.data.max_length)
    training = training_of(recipe.train, length, rows_about(recipe.data), task)
    return _forecast(shapes, methods, recipe.train, length, training, place, base.host_layers)


def _length(model: nn.Module, config: TrainConfig, max_length: int | None) -> int:
    """A row of unknown length is taken to be as long as the base or the micro-batch allows."""
    return max_length or min(context_limit(model) or config.micro_batch_tokens, config.micro_batch_tokens)


def _forecast(
    model: nn.Module,
    method: Methods,
    config: TrainConfig,
    length: int,
    training: Training | None,
    place: budget.Machine,
    host_layers: int | Literal["auto"],
) -> Forecast:
    planned = adapter.plan(model, with_head(model, method))
    return budget.forecast(
        planned,
        workload(config, planned, model, length, place, host_layers),
        place,
        decoder=isinstance(model, CausalLM),
        moments=config.optimizer.elements,
        training=training,
        remarks=tuple(outlook.remarks(config, planned)),
    )


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
