"""The device a run would use, and how much of its memory is free."""

import os
from dataclasses import dataclass, replace
from functools import cache

import torch

from lorica.budget.devices import device as device_called
from lorica.budget.free import free_memory
from lorica.budget.rate import product_gflops
from lorica.errors import RequestError
from lorica.models.loading import known_device

ROOM = 0.95
"""The share of the free memory that a run may plan for: allocators lose some of it to gaps."""


@dataclass(frozen=True)
class Machine:
    """`kind` is cpu or cuda; `available` bytes, 0 where the system does not tell."""

    name: str
    kind: str
    available: int
    tflops: float | None = None
    """Of matrix products: the published rate of a card of the table, or what was measured here."""
    measured: bool = False

    def holds(self, peak: int) -> bool | None:
        """Whether a run of so many bytes may be planned; None where the memory is not known."""
        return peak <= ROOM * self.available if self.available else None

    def __str__(self) -> str:
        size = self.available / 1e9
        told = f"{size:,.0f}" if size >= 1000 else f"{size:.3g}"
        return f"{self.name}, {told} GB available" if size else self.name


def machine_called(name: str) -> Machine:
    """A card that is not here, with nothing else on it; RequestError where none is known by this name."""
    found = device_called(name)
    return Machine(found.name, found.kind, found.available, found.tflops)


def rated(place: Machine, dtype: torch.dtype) -> Machine:
    """This machine with the rate of its products in a type; measured once a process, a second at most."""
    return replace(place, tflops=_tflops(dtype, place.kind), measured=True)


@cache
def _tflops(dtype: torch.dtype, kind: str) -> float:
    return product_gflops(dtype, kind) / 1e3


def machine(device: str | None = None, memory: float | None = None) -> Machine:
    """The device that `device` names (None: the GPU where there is one), or that kind with `memory` bytes instead."""
    place = known_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    kind = place.type
    if memory is not None:
        if memory <= 0:
            raise RequestError(f"--memory: {memory / 1e9:g} GB is no amount of memory; give decimal GB, as in 24")
        return Machine(f"a {kind}", kind, int(memory))
    if kind == "cpu" or (kind == "cuda" and torch.cuda.is_available()):
        name = f"cpu, {os.cpu_count()} cores" if kind == "cpu" else torch.cuda.get_device_name(place)
        return Machine(name, kind, free_memory(place)[0])
    return Machine(kind, kind, 0)
