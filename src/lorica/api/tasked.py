"""A base for a task: the labels that only rows tell, a head for them, and the head among what is trained."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorica import adapter, data, models
from lorica.adapter import Attached, Plan
from lorica.adapter.plan import Methods
from lorica.data import DataConfig
from lorica.errors import AdapterError, LoricaError, RequestError
from lorica.methods import HeadOnly, Method
from lorica.models import Head
from lorica.models.folder import folder_of
from lorica.models.foreign import read_config
from lorica.models.heads import labels_of
from lorica.tasks import TASKS, Task, require_task

TaskLike = Task | str | Mapping[str, Any]


def load_base(
    source: str | Path,
    dtype: str | torch.dtype | None = None,
    quantize: str | None = None,
    device: str | torch.device | None = None,
    *,
    double_quant: bool = False,
    host_layers: int = 0,
    task: TaskLike | None = None,
    seed: int = 0,
) -> nn.Module:
    """A frozen base in evaluation mode; see `lorica.models.load_base`.

    task   what it is for, where that needs a head: "regression", {"name": "classification", "labels": [...]}.  `attach`
           then trains the head as well, and `fit` and `evaluate` know the task
    seed   of a head that the checkpoint does not have
    """
    asked = None if task is None else require_task(task)
    if asked is not None and asked.needs_rows:
        raise RequestError(f"task: {asked.name} needs its labels here: {{'name': '{asked.name}', 'labels': [...]}}")
    head = None if asked is None else asked.head(seed)
    model: Any = models.load_base(
        source,
        dtype=dtype,
        quantize=quantize,
        device=device,
        head=head,
        double_quant=double_quant,
        host_layers=host_layers,
    )
    if asked is not None:
        model.task = asked
    return model


def settled(task: Task, config: DataConfig, source: str, tell: Callable[[str], None] = lambda told: None) -> Task:
    """The task with what its rows tell, which are read for nothing else; labels that no training row has are told."""
    if not task.needs_rows:
        return task
    known = labels_of(read_config(folder_of(source, weights=False)), task.head_kind) if task.head_kind else ()
    rows, held = data.rows_of(task.sources(config))
    learned: Any = task.settled(rows, known)
    found: Any = task.settled(rows, known, held or ())
    if unlearned := [repr(label) for label in found.labels if label not in learned.labels]:
        tell(f"labels that no training row has: {', '.join(unlearned)}; what is held out of them counts as missed")
    return found


def attach(
    model: nn.Module, method: Methods | Plan, *, seed: int = 0, statistics: Mapping[str, Tensor] | None = None
) -> Attached:
    """Adapts `model` in place; see `lorica.adapter.attach`.  The head of a base that was loaded for a task is trained
    and saved with the adapter, as PEFT does it."""
    return adapter.attach(model, with_head(model, method), seed=seed, statistics=statistics)


def with_head(model: nn.Module, method: Methods | Plan) -> Any:
    """The methods, one of which trains the head of the model where it has one and none did."""
    heads = getattr(model, "head_modules", ())
    given: Any = method if isinstance(method, list | tuple) else (method,)
    methods = tuple(each for each in given if isinstance(each, Method))
    if not heads or len(methods) < len(given):
        return method
    untrained = _untrained(model, heads, methods)
    if not untrained:
        return methods
    for number, each in enumerate(methods):
        if "modules_to_save" in type(each).model_fields:
            saved = tuple(dict.fromkeys((*getattr(each, "modules_to_save", ()), *untrained)))
            return (*methods[:number], each.model_copy(update={"modules_to_save": saved}), *methods[number + 1 :])
    return (*methods, HeadOnly(modules_to_save=untrained))


def _untrained(model: nn.Module, heads: Sequence[str], methods: Sequence[Method]) -> tuple[str, ...]:
    """The modules of the head that no method trains whole."""
    sites = models.sites(model)
    copied = {edit.site.name for each in methods for edit in each.edits(sites) if edit.place == "instead"}
    parameters = [site.name for site in sites if site.kind == "parameter"]
    return tuple(head for head in heads if any(p.startswith(f"{head}.") and p not in copied for p in parameters))


def recorded_head(manifest: Mapping[str, Any] | None) -> Head | None:
    """The head that an adapter was trained with.  AdapterError where that is damaged."""
    recorded = (manifest or {}).get("head")
    if recorded is None:
        return None
    try:
        return Head.of(recorded)
    except (LoricaError, AttributeError) as error:
        raise AdapterError(f"lorica.json: {error}") from error


def task_for(model: nn.Module, asked: TaskLike | None, manifest: Mapping[str, Any] | None = None) -> Task:
    """The task that is asked for, else the one that the model was loaded or the adapter trained for."""
    own = getattr(model, "task", None) or _recorded_task(manifest)
    if asked is None:
        return own or TASKS["causal_lm"]
    task = require_task(asked)
    if own is not None and own.name == task.name and task.needs_rows:
        return own
    if task.needs_rows:
        raise RequestError(
            f"task: {task.name} needs its labels: load the base with task={{'name': ..., 'labels': ...}}"
        )
    return task


def taught(attached: Attached, task: Task) -> None:
    """The model is for this task from now on, until the adapter is taken off."""
    model: Any = attached.model
    before = getattr(model, "task", None)
    if task != (before or TASKS["causal_lm"]):
        model.task = task
        attached.at_end(lambda: setattr(model, "task", before))


def _recorded_task(manifest: Mapping[str, Any] | None) -> Task | None:
    recorded = (manifest or {}).get("task")
    if recorded is None:
        return None
    try:
        return require_task(recorded)
    except LoricaError as error:
        raise AdapterError(f"lorica.json: {error}") from error
