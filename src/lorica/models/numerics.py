"""Numerics: everything beside weights and inputs that decides the bits of a forward pass, and how far roundings carry.

    bound = 4 sqrt(n) max(u, u_s sqrt(d))     relative to the largest value

n linears stand one after another at most; each rounds its result to the type of the activations (unit u) and sums d
products in at least float32 (unit u_s), whose errors are independent and grow with the square root of their number
(Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 2.8).  4: what norms and softmax amplify.
"""

import math
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorica.kernels.native import library
from lorica.models.edited import Edited
from lorica.models.quantised import quantisation_of
from lorica.models.walking import base_tensors, sites

Numerics = Mapping[str, Any]
LIBRARIES = ("lorica", "torch", "transformers")
AMPLIFIED = 4.0
TENSOR_FLOAT_32 = 2.0**-10
MOST_THREADS = 256
UNRECORDED = {"kernels": "none"}
"""What a record of before a key was kept stands for."""


def numerics(model: nn.Module) -> dict[str, Any]:
    """As JSON values.  Two passes with equal numerics, weights and inputs are equal to the bit."""
    place = next(model.parameters()).device
    return {
        "forward": _forward_of(model),
        "attention": getattr(getattr(model, "config", None), "_attn_implementation", None),
        "dtype": " ".join(sorted({_name(t.dtype) for t in base_tensors(model).values() if t.is_floating_point()})),
        "stored": _stored(model),
        "kernels": _kernels(model, place),
        "device": _device(place),
        "threads": torch.get_num_threads(),
        "products": torch.get_float32_matmul_precision(),
        "cpu": f"{platform.machine()} {_processor()}, {torch.backends.cpu.get_cpu_capability()}",
        "versions": {library: found for library in LIBRARIES if (found := _version(library))},
    }


def changed(then: Numerics, now: Numerics) -> list[str]:
    """What differs, as `threads 2 (was 8)`; empty when the same bits are due."""
    then = UNRECORDED | dict(then)
    return [f"{key} {_told(now.get(key))} (was {_told(then.get(key))})" for key in now if now[key] != then.get(key)]


def rounding(model: nn.Module, *passes: Numerics) -> float:
    """How far outputs of one model under these numerics may lie apart, relative to the largest value."""
    linears = [site for site in sites(model) if site.kind in ("linear", "conv", "experts")]
    longest = max((site.d_in for site in linears), default=1)
    unit = max(_unit(each) for each in passes)
    summed = min(unit, torch.finfo(torch.float32).eps)
    return AMPLIFIED * math.sqrt(max(1, len(linears))) * max(unit, summed * math.sqrt(longest))


@contextmanager
def threads_of(recorded: Numerics) -> Iterator[None]:
    """As many threads as were recorded, where they are few enough for any machine; the caller's come back."""
    before, wanted = torch.get_num_threads(), recorded.get("threads")
    if isinstance(wanted, int) and 1 <= wanted <= MOST_THREADS:
        torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def dtype_of(recorded: Numerics) -> str | None:
    """The type the base was computed in, where it was one."""
    named = recorded.get("dtype")
    return named if isinstance(named, str) and isinstance(getattr(torch, named, None), torch.dtype) else None


def _unit(recorded: Numerics) -> float:
    kinds = [getattr(torch, name, None) for name in str(recorded.get("dtype", "")).split()]
    units = [torch.finfo(kind).eps for kind in kinds if isinstance(kind, torch.dtype) and kind.is_floating_point]
    if str(recorded.get("device")) != "cpu" and recorded.get("products") != "highest":
        units.append(TENSOR_FLOAT_32)
    return max(units) if units else torch.finfo(torch.float32).eps


def _stored(model: nn.Module) -> str | None:
    found = quantisation_of(model)
    return None if found is None else str(found)


def _kernels(model: nn.Module, place: torch.device) -> str:
    """The build of the kernels in C, which read bfloat16 on a CPU; none where they serve nothing."""
    served = place.type == "cpu" and any(t.dtype == torch.bfloat16 for t in base_tensors(model).values())
    return library().name if served else "none"


def _forward_of(model: nn.Module) -> str:
    while isinstance(model, Edited):
        model = model.base
    return f"{type(model).__module__}.{type(model).__qualname__}"


def _device(place: torch.device) -> str:
    if place.type != "cuda":
        return place.type
    major, minor = torch.cuda.get_device_capability(place)
    return f"cuda {torch.cuda.get_device_name(place)} {major}.{minor}, CUDA {torch.version.cuda}"


@cache
def _processor() -> str:
    """The model of the processor: libraries choose their kernels by it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "unknown")


@cache
def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _told(value: Any) -> str:
    return " ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
