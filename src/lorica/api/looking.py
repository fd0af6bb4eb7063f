"""What only looks: the data report and the machine."""

import os
import platform
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from lorica import budget, data
from lorica.api.lessons import ANY_LENGTH
from lorica.data import DataConfig, DataReport
from lorica.errors import ModelError
from lorica.models import context_limit, load_tokenizer, renderer, shapes_only
from lorica.models.chat import plain_tokenizer

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "peft", "datasets", "tensorboard")


def data_report(file: str, model: str, *, held: str | None = None) -> DataReport:
    """What the rows of `file` would teach the base `model`, of which only shapes and the tokenizer are read."""
    tokenizer = load_tokenizer(model)
    if tokenizer is None:
        raise ModelError(f"{model}: brings no tokenizer")
    plain = plain_tokenizer(tokenizer)
    limit = context_limit(shapes_only(model)) or ANY_LENGTH
    train, evaluation = data.load(DataConfig(train=file, eval=held), plain, renderer(tokenizer), limit=limit)
    return DataReport.of(train, evaluation, plain)


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
