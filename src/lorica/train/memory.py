"""Memory that a run uses, and a warning before it runs out."""

import os
import resource
import sys
from pathlib import Path

import torch

LOW_SHARE = 0.08
"""Below this share of free memory Linux begins to reclaim pages that the run still needs."""


def used_bytes(device: torch.device) -> int:
    """Resident memory of the process; on CUDA the most the run has held on the device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        pages = int(Path("/proc/self/statm").read_bytes().split()[1])
    except OSError:
        return peak_bytes(device)
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_bytes(device: torch.device) -> int:
    """The most the process, or the device, has held so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def shortage(device: torch.device) -> str | None:
    """One line when little is left, None while there is enough or nobody can tell."""
    free, total = available(device)
    if not total or free >= LOW_SHARE * total:
        return None
    place = "the device" if device.type == "cuda" else "this machine"
    return (
        f"memory runs low: {free / 1e9:.1f} of {total / 1e9:.1f} GB left on {place}; "
        "lower train.micro_batch_tokens (results change by rounding alone) or set train.gradient_checkpointing"
    )


def available(device: torch.device) -> tuple[int, int]:
    """Free and total bytes, of the container where it is bounded; (0, 0) where the system does not tell."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device), total
    return min(_machine(), _container(), key=lambda place: place[0] if place[1] else sys.maxsize)


def _machine() -> tuple[int, int]:
    sizes = {name.rstrip(":"): int(size) * 1024 for name, size, *_ in _fields("/proc/meminfo")}
    return sizes.get("MemAvailable", 0), sizes.get("MemTotal", 0)


def _container() -> tuple[int, int]:
    """The bound of the control group (version 2), whose count of used bytes includes files it can let go of."""
    bound, used = (_fields(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if not bound or not used or bound[0][0] == "max":
        return 0, 0
    files = sum(int(size) for name, size in _fields("/sys/fs/cgroup/memory.stat") if name.endswith("active_file"))
    return int(bound[0][0]) - int(used[0][0]) + files, int(bound[0][0])


def _fields(path: str) -> list[list[str]]:
    """The words of each line; nothing where the system has no such file."""
    try:
        return [line.split() for line in Path(path).read_text().splitlines()]
    except OSError:
        return []
