"""Memory that is still free: of the device, of the machine, of the container it is bounded by."""

import sys
from pathlib import Path

import torch


def free_memory(device: torch.device) -> tuple[int, int]:
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
