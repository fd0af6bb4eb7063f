"""The device a run would use, and how much of its memory is free."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from lorica.errors import RequestError


@dataclass(frozen=True)
class Machine:
    """`kind` is cpu or cuda; `available` bytes, 0 where the system does not tell."""

    name: str
    kind: str
    available: int

    def __str__(self) -> str:
        return f"{self.name}, {self.available / 1e9:.1f} GB available" if self.available else self.name


def machine(device: str | None = None, memory: float | None = None) -> Machine:
    """The device that `device` names (None: the GPU where there is one), or that kind with `memory` bytes instead."""
    kind = (device or ("cuda" if torch.cuda.is_available() else "cpu")).partition(":")[0]
    if memory is not None:
        if memory <= 0:
            raise RequestError(f"--memory: {memory / 1e9:g} GB is no amount of memory; give decimal GB, as in 24")
        return Machine(f"a {kind} with {memory / 1e9:g} GB", kind, int(memory))
    if kind == "cuda" and torch.cuda.is_available():
        return Machine(torch.cuda.get_device_name(), kind, torch.cuda.mem_get_info()[0])
    return Machine(
        f"cpu, {os.cpu_count()} cores" if kind == "cpu" else kind, kind, free_memory() if kind == "cpu" else 0
    )


def free_memory() -> int:
    """Bytes that a new process can take, 0 where the system does not tell."""
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return min(int(line.split()[1]) * 1024, _bound())
    return 0


def _bound() -> int:
    """What the control group leaves, or no bound at all."""
    limit, used = (_lines(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if not limit or not used or limit[0] == "max":
        return 1 << 62
    reclaimable = sum(
        int(line.split()[1]) for line in _lines("/sys/fs/cgroup/memory.stat") if line.split()[0].endswith("active_file")
    )
    return int(limit[0]) - int(used[0]) + reclaimable


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
