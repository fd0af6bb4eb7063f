"""What a result was measured on: written into every result file."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lorica.budget import product_gflops

PACKAGES = ("torch", "transformers", "peft", "numpy")


def machine() -> dict[str, Any]:
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "bfloat16_gflops": round(product_gflops(torch.bfloat16)),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
