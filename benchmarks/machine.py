"""What a result was measured on: written into every result file."""

import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "peft", "numpy")


def machine() -> dict[str, Any]:
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "bfloat16_gflops": _bfloat16_gflops(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def _bfloat16_gflops() -> int:
    """The rate of a large product here and now: machines that share a processor differ by two from hour to hour."""
    import torch

    x = torch.randn(2048, 2048).to(torch.bfloat16)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        x @ x
        seconds.append(time.perf_counter() - began)
    return round(2 * 2048**3 / min(seconds) / 1e9)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
