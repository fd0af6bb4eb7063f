"""What only looks: the data report and the machine."""

import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from lorica import budget, data
from lorica.api.lessons import reader_of
from lorica.api.tasked import TaskLike, settled
from lorica.data import DataConfig, DataReport, Purpose
from lorica.errors import ModelError, RequestError
from lorica.models import add_tokens, load_tokenizer, shapes_only
from lorica.recipe import Recipe
from lorica.tasks import Task, require_task

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "peft", "datasets", "tensorboard")


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


@dataclass(frozen=True, kw_only=True)
class Machinery:
    """What there is to train with."""

    device: str
    python: str
    threads: int
    bfloat16: bool
    free_disk_bytes: int
    versions: dict[str, str | None]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"device       {self.device}",
            f"python       {self.python}, {self.threads} threads",
            f"bfloat16     {'yes' if self.bfloat16 else 'no'}",
            f"free disk    {self.free_disk_bytes / 1e9:.1f} GB here",
        ]
        return "\n".join([*lines, *(f"{name:<12} {found or 'not installed'}" for name, found in self.versions.items())])


def doctor() -> Machinery:
    """The device, its memory, whether it computes in bfloat16, and the versions of what Lorica stands on."""
    return Machinery(
        device=str(budget.machine()),
        python=platform.python_version(),
        threads=torch.get_num_threads(),
        bfloat16=_computes_bfloat16(),
        free_disk_bytes=shutil.disk_usage(os.getcwd()).free,
        versions={library: _version(library) for library in LIBRARIES},
    )


def _computes_bfloat16() -> bool:
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
