"""A base and a data source to data sets: the tokenizer and template of one room, handed to the other."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from torch import nn

from lorica import data
from lorica.data import DataConfig, Dataset, Renderer, Teacher, Tokenizer, dated, text_of
from lorica.errors import DataError, ModelError
from lorica.models import context_limit, renderer
from lorica.models.chat import ChatRenderer, plain_tokenizer
from lorica.tasks import TASKS, Reader, Task

Rows = Iterable[Mapping[str, Any]]
CAUSAL_LM = TASKS["causal_lm"]
ANY_LENGTH = 1 << 20
"""The longest row for a base that has no limit of its own."""


def tokenizer_of(model: nn.Module) -> tuple[Tokenizer, Renderer | None]:
    """The tokenizer as the data room takes it, and its chat template where it has one."""
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise ModelError(
            "this base brings no tokenizer; set model.tokenizer, or load the base from a folder that has one"
        )
    return plain_tokenizer(tokenizer), renderer(tokenizer)


def reader_of(model: nn.Module, task: Task) -> Reader:
    """What the base reads rows of a task with."""
    tokenizer: Any = getattr(model, "tokenizer", None)
    plain, template = tokenizer_of(model) if tokenizer is not None or task.reads_text else (tokenizer, None)
    return Reader(
        plain=plain,
        template=template,
        tokenizer=tokenizer,
        limit=longest(model),
        config=getattr(model, "config", None),
        folder=getattr(model, "source", None),
    )


def from_files(
    model: nn.Module, config: DataConfig, task: Task = CAUSAL_LM, *, began: datetime | None = None
) -> tuple[Dataset, Dataset | None]:
    """The training and the evaluation data that a config names.  DataError where every row of one was dropped.

    began: the moment that a template which asks for the date is told, None: now.
    """
    learned, held = data.taught(task.sources(config), _teacher(model, config, task, began))
    return _usable(learned, "data.train"), None if held is None else _usable(held, "data.eval")


def from_anything(
    model: nn.Module,
    source: "str | Rows | Dataset",
    config: DataConfig | None = None,
    task: Task = CAUSAL_LM,
    *,
    began: datetime | None = None,
) -> Dataset:
    """A data set as it is, rows in memory, or a source by name, encoded as `config` says."""
    if isinstance(source, Dataset):
        return source
    if isinstance(source, str):
        kept = config.model_dump(exclude={"train", "eval"}) if config else {}
        return from_files(model, DataConfig(train=source, **kept), task, began=began)[0]
    teacher = _teacher(model, config or DataConfig(train="rows"), task, began)
    return _usable(teacher.dataset(data.in_memory(source), "rows"), "rows")


def _teacher(model: nn.Module, config: DataConfig, task: Task, began: datetime | None) -> Teacher:
    """With one moment for all rows: a row is rendered in parts, which two dates would make another row."""
    reader, moment = reader_of(model, task), began or datetime.now()
    if isinstance(reader.template, ChatRenderer):
        reader = replace(reader, template=replace(reader.template, template=dated(reader.template.template, moment)))
    if config.template is not None:
        config = config.model_copy(update={"template": dated(text_of(config.template), moment)})
    return task.lessons(config, reader)


def _usable(rows: Dataset, what: str) -> Dataset:
    if len(rows):
        return rows
    raise DataError(f"{what}: none of {rows.read} rows can be used: {rows.why_dropped}")


def longest(model: nn.Module) -> int:
    return context_limit(model) or ANY_LENGTH
