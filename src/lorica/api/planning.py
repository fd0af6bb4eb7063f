"""plan: what would be trained and what it costs, from shapes alone."""

from typing import Any

from torch import nn

from lorica import adapter, budget
from lorica.adapter.plan import Methods
from lorica.api.tasked import settled, with_head
from lorica.api.vocabulary import with_tokens
from lorica.budget import Forecast, Workload
from lorica.errors import RequestError
from lorica.models import context_limit, load_tokenizer, shapes_only
from lorica.models.causal_lm import CausalLM
from lorica.recipe import Recipe
from lorica.train import TrainConfig


def plan(
    base: nn.Module | Recipe,
    method: Methods | None = None,
    *,
    memory: float | None = None,
) -> Forecast:
    """Coverage, parameters and memory of a method on a model, or of a whole recipe, whose weights are not read.

    A recipe whose task does not name its labels has its rows read for them.
    memory: bytes to plan for instead of this machine's.  Raises `TargetError` where the method does not fit.
    """
    if isinstance(base, Recipe):
        return _of_recipe(base, memory)
    if method is None:
        raise RequestError("plan: give a method beside the model, as in plan(model, lorica.LoRA(r=8))")
    return _forecast(base, method, TrainConfig(), None, budget.machine(memory=memory))


def _of_recipe(recipe: Recipe, memory: float | None) -> Forecast:
    task = settled(recipe.task, recipe.data, recipe.model.source)
    shapes: Any = shapes_only(recipe.model.source, recipe.model.dtype, head=task.head())
    if recipe.model.add_tokens:
        shapes.tokenizer = load_tokenizer(recipe.model.source)
    methods = with_tokens(shapes, recipe.model.add_tokens, recipe.method)
    place = budget.machine(recipe.model.device, memory)
    return _forecast(shapes, methods, recipe.train, recipe.data.max_length, place)


def _forecast(
    model: nn.Module,
    method: Methods,
    config: TrainConfig,
    max_length: int | None,
    place: budget.Machine,
) -> Forecast:
    """A row of unknown length is taken to be as long as the base or the micro-batch allows."""
    length = max_length or min(context_limit(model) or config.micro_batch_tokens, config.micro_batch_tokens)
    work = Workload(tokens=max(config.micro_batch_tokens, length), length=length, recomputed=_recomputed(config))
    return budget.forecast(
        adapter.plan(model, with_head(model, method)), work, place, decoder=isinstance(model, CausalLM)
    )


def _recomputed(config: TrainConfig) -> int | None:
    layers = config.gradient_checkpointing
    return None if layers is True else int(layers)
