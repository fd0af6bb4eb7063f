"""The machine: what there is to train with, which path each kernel takes on it, and what would be missed."""

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lorica import budget
from lorica.kernels import pool
from lorica.kernels.choice import OPS, Choice, decided, has_triton
from lorica.kernels.native import library

LIBRARIES = ("torch", "triton", "transformers", "tokenizers", "safetensors", "peft", "datasets", "tensorboard")
EXTRAS = {
    "hub": ("datasets",),
    "images": ("pillow",),
    "quant": ("bitsandbytes", "accelerate"),
    "texts": ("rouge-score", "sacrebleu"),
    "serve": ("fastapi", "uvicorn", "prometheus-client"),
    "track": ("tensorboard",),
}
"""What `pip install 'lorica[NAME]'` brings."""
SETTINGS = (
    "OMP_NUM_THREADS",
    "OMP_PROC_BIND",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "MKL_NUM_THREADS",
    "ONEDNN_MAX_CPU_ISA",
    "THP_MEM_ALLOC_ENABLE",
    "GLIBC_TUNABLES",
    "LD_PRELOAD",
    "LORICA_NATIVE",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TRITON_INTERPRET",
)
"""Variables that change how fast the same program runs."""
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
TYPICAL_WIDTH = 64
"""Of a head or a rank: no op is too wide for its kernel."""


@dataclass(frozen=True, kw_only=True)
class Machinery:
    """What there is to train with.

    bfloat16           the device computes in it; on a CPU that does not, kernels in C widen it
    products_gflops    dtype -> measured rate of matrix products, 10^9 operations a second
    pool               whether tensors of a run on a CPU come from our pool, and why
    huge_pages         how the system gives transparent huge pages: always, madvise, never; None where it does not say
    settings           variables of the environment that change speed, where they are set
    kernels            op -> device -> path and why, for bfloat16
    missing            extra -> its libraries that are not installed
    """

    device: str
    python: str
    threads: int
    bfloat16: bool
    free_disk_bytes: int
    versions: dict[str, str | None]
    products_gflops: dict[str, float]
    pool: str
    huge_pages: str | None
    settings: dict[str, str]
    kernels: dict[str, dict[str, Choice]]
    missing: dict[str, tuple[str, ...]]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        rates = ", ".join(f"{rate:,.0f} GFLOP/s in {dtype}" for dtype, rate in self.products_gflops.items())
        lines = [
            f"device       {self.device}",
            f"python       {self.python}, {self.threads} threads",
            f"bfloat16     {'yes' if self.bfloat16 else self._without_bfloat16()}",
            f"products     {rates}",
            f"pool         {self.pool}",
            f"huge pages   {self.huge_pages or 'not told'}",
            f"free disk    {self.free_disk_bytes / 1e9:.1f} GB here",
            *(f"{name}={value}" for name, value in self.settings.items()),
            *(f"{name:<12} {found or 'not installed'}" for name, found in self.versions.items()),
        ]
        return "\n".join([*lines, *self._kernel_lines(), *self._missing_lines()])

    def _without_bfloat16(self) -> str:
        return "no; kernels in C widen it to float32" if "bfloat16" in self.products_gflops else "no"

    def _kernel_lines(self) -> Iterator[str]:
        for op, paths in self.kernels.items():
            for device, choice in paths.items():
                yield f"{op:<17} {device:<5} {choice.path:<7} {choice.why}"

    def _missing_lines(self) -> Iterator[str]:
        for extra, libraries in self.missing.items():
            yield f"without {', '.join(libraries)}: pip install 'lorica[{extra}]'"


def doctor() -> Machinery:
    """The device, what it computes how fast, the versions of what Lorica stands on, and the path of each kernel."""
    return Machinery(
        device=str(budget.machine()),
        python=platform.python_version(),
        threads=torch.get_num_threads(),
        bfloat16=_computes_bfloat16(),
        free_disk_bytes=shutil.disk_usage(os.getcwd()).free,
        versions={library: _version(library) for library in LIBRARIES},
        products_gflops=_products(),
        pool=pool().why if pool().lacking is None else f"none, memory is kept back by glibc: {pool().why}",
        huge_pages=_huge_pages(),
        settings={name: os.environ[name] for name in SETTINGS if name in os.environ},
        kernels={op: _paths(op) for op in OPS},
        missing=_missing(),
    )


def _paths(op: str) -> dict[str, Choice]:
    given = torch.bfloat16, TYPICAL_WIDTH, has_triton(), library().lacking
    return {kind: decided(op, kind, *given) for kind in ("cpu", "cuda")}


def _products() -> dict[str, float]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtypes = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    if not _computes_bfloat16() and (device == "cuda" or library().lacking):
        del dtypes["bfloat16"]
    return {name: round(budget.product_gflops(dtype, device), 1) for name, dtype in dtypes.items()}


def _computes_bfloat16() -> bool:
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def _huge_pages() -> str | None:
    """The word in brackets: `always [madvise] never`."""
    try:
        return HUGE_PAGES.read_text().partition("[")[2].partition("]")[0] or None
    except OSError:
        return None


def _missing() -> dict[str, tuple[str, ...]]:
    absent = {extra: tuple(name for name in names if _version(name) is None) for extra, names in EXTRAS.items()}
    return {extra: names for extra, names in absent.items() if names}


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
