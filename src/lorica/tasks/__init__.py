"""What a task learns and how it is scored: rows to labelled batches, a loss, its unit and its metrics."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from lorica.errors import RecipeError, by_field, did_you_mean
from lorica.tasks.causal_lm import CausalLanguageModelling
from lorica.tasks.classification import Classification
from lorica.tasks.contract import Draw, Reader, Task
from lorica.tasks.dpo import PreferenceTuning
from lorica.tasks.image_classification import ImageClassification
from lorica.tasks.multi_label import MultiLabel
from lorica.tasks.question_answering import QuestionAnswering
from lorica.tasks.regression import Regression
from lorica.tasks.seq2seq import SequenceToSequence
from lorica.tasks.token_classification import TokenClassification
from lorica.tasks.vision_language import VisionLanguage

TASKS: Mapping[str, Task] = MappingProxyType(
    {
        task.name: task
        for task in (
            CausalLanguageModelling(),
            Classification(),
            PreferenceTuning(),
            ImageClassification(),
            MultiLabel(),
            QuestionAnswering(),
            Regression(),
            SequenceToSequence(),
            TokenClassification(),
            VisionLanguage(),
        )
    }
)
"""Tasks by the name that a recipe gives them, each with its defaults."""


def task_of(entry: Task | str | Mapping[str, Any]) -> Task:
    """The task that a recipe's entry describes: its name, or a mapping with `name` and the task's own fields.

    ValueError for a name that is none, pydantic's ValidationError for wrong fields.
    """
    if isinstance(entry, Task):
        return entry
    fields = dict(entry) if isinstance(entry, Mapping) else {"name": entry}
    name = fields.pop("name", None)
    if not isinstance(name, str):
        raise ValueError("names one of " + ", ".join(TASKS) + ", as in `task: classification`")
    if name not in TASKS:
        near = did_you_mean(name, TASKS) or f"; there are {', '.join(TASKS)}"
        raise ValueError(f"there is no task {name!r}{near}")
    return type(TASKS[name]).model_validate(fields)


def require_task(entry: Task | str | Mapping[str, Any]) -> Task:
    """The same for callers; RecipeError with every problem."""
    try:
        return task_of(entry)
    except ValidationError as error:
        raise RecipeError.of(by_field(error, "task")) from error
    except ValueError as error:
        raise RecipeError(f"task: {error}") from error


__all__ = [
    "TASKS",
    "CausalLanguageModelling",
    "Classification",
    "Draw",
    "ImageClassification",
    "MultiLabel",
    "PreferenceTuning",
    "QuestionAnswering",
    "Reader",
    "Regression",
    "SequenceToSequence",
    "Task",
    "TokenClassification",
    "VisionLanguage",
    "require_task",
    "task_of",
]
