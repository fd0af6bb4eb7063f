"""What only looks at data: the report of what its rows would teach."""

from collections.abc import Sequence
from typing import Any

from lorica import data
from lorica.api.lessons import reader_of
from lorica.api.tasked import TaskLike, settled
from lorica.data import DataConfig, DataReport, Purpose
from lorica.errors import ModelError, RequestError
from lorica.models import add_tokens, load_tokenizer, shapes_only
from lorica.recipe import Recipe
from lorica.tasks import Task, require_task


def data_report(
    source: str | Recipe, model: str | None = None, *, held: str | None = None, task: TaskLike | None = None
) -> DataReport:
    """What rows would teach a base, of which only shapes and the tokenizer are read.

    source   a recipe, which names all else, or rows: a file or any other data source, with `held` to evaluate on
    model    the base that reads them
    task     what they are for; None: language modelling
    """
    if isinstance(source, Recipe):
        _refuse_beside(model=model, eval=held, task=task)
        return _reported(source.model.source, source.data, source.task, source.model.add_tokens)
    if model is None:
        raise RequestError("data: name the base that reads the rows with --model, or give a recipe")
    return _reported(model, DataConfig(train=source, eval=held), require_task(task or "causal_lm"))


def _refuse_beside(**given: object) -> None:
    named = [name for name, value in given.items() if value is not None]
    if named:
        raise RequestError.of([f"data: the recipe names its {name}; change it there, or with --set" for name in named])


def _reported(base: str, config: DataConfig, task: Task, words: Sequence[str] = ()) -> DataReport:
    task = settled(task, config, base)
    shapes: Any = shapes_only(base, head=task.head())
    shapes.tokenizer = load_tokenizer(base)
    if shapes.tokenizer is None and task.reads_text:
        raise ModelError(f"{base}: brings no tokenizer")
    if words:
        add_tokens(shapes, words)
    reader = reader_of(shapes, task)
    learned, evaluation = data.taught(task.sources(config), task.lessons(config, reader))
    return DataReport.of(learned, evaluation, reader.plain, Purpose(task.name, task.unit, task.told))
