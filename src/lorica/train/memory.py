"""Memory that a run uses, and a warning before it runs out."""

import gc
import os
import resource
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from lorica.budget.free import free_memory
from lorica.kernels import pool
from lorica.models import freed

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


def held_bytes(device: torch.device) -> int:
    """What the process, or the device, holds now."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _status("VmRSS") or used_bytes(device)


def forget_peak(device: torch.device) -> None:
    """`most_held` begins again from what is held now, where the system allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def most_held(device: torch.device, context: int) -> int:
    """The most since `forget_peak`, the context of a device among it.

    Unlike getrusage's, Linux's own number does not begin with what the parent of the process held.
    """
    if device.type == "cuda":
        return context + torch.cuda.max_memory_allocated(device)
    return _status("VmHWM") or peak_bytes(device)


def _status(name: str) -> int:
    """Bytes of this process by Linux's name for them; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def give_back(device: torch.device) -> None:
    """What is of no use any more goes back to the system, or to the device; what is freed in circles, too."""
    gc.collect()
    trim(device)


def trim(device: torch.device) -> None:
    """What was freed goes back to the system, or to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if device.type == "cpu":
        pool().empty()
    freed.give_back()


@contextmanager
def no_slow_products() -> Iterator[None]:
    """A product that oneDNN has no room for is an error, instead of a warning and torch's own slow product."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=r"mkldnn_\w+ failed.*could not create a primitive(?! desc)")
        yield


@contextmanager
def products_stay_fast() -> Iterator[None]:
    """After the first product without room torch asks oneDNN for none again; here it does, once there may be room."""
    enabled = torch._C._get_mkldnn_enabled()
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(enabled)


def shortage(device: torch.device) -> str | None:
    """One line when little is left, None while there is enough or nobody can tell."""
    free, total = free_memory(device)
    if not total or free >= LOW_SHARE * total:
        return None
    place = "the device" if device.type == "cuda" else "this machine"
    return (
        f"memory runs low: {free / 1e9:.1f} of {total / 1e9:.1f} GB left on {place}; "
        "lower train.micro_batch_tokens (results change by rounding alone) or set train.gradient_checkpointing"
    )
