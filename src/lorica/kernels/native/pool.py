"""The pool of `pool.cpp`: memory of tensors on a CPU, of which no more stays resident than tensors took at one time.

It takes torch's allocator's place in a process for as long as somebody uses it.  Tensors may outlive that.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from lorica.kernels.native.compiled import FOLDER, OFF, Sources, Uncompiled, loaded

TORCH = Path(torch.__file__).parent
SPARED = 64
"""A part of what tensors took may stay resident beyond it: one in so many bytes."""


@dataclass(frozen=True)
class Held:
    """Bytes: of tensors alive, the most of them at one time since the pool was emptied, and of resident pages."""

    live: int
    most: int
    resident: int


@dataclass(frozen=True)
class Pool:
    """The functions, or why there are none."""

    functions: ctypes.CDLL | None
    why: str

    @property
    def lacking(self) -> str | None:
        return None if self.functions else self.why

    @contextmanager
    def used(self) -> Iterator[None]:
        """Tensors are made in the pool meanwhile, by every thread; where there is none, by torch's allocator."""
        if self.functions is None:
            yield
            return
        self.functions.lorica_pool_begin()
        try:
            yield
        finally:
            self.functions.lorica_pool_end()

    def empty(self) -> None:
        """What is free goes back to the system."""
        if self.functions is not None:
            self.functions.lorica_pool_empty()

    def held(self) -> Held:
        if self.functions is None:
            return Held(0, 0, 0)
        told = (ctypes.c_int64 * 3)()
        self.functions.lorica_pool_tell(told)
        return Held(*told)


def pooled(device: torch.device) -> AbstractContextManager[None]:
    """The pool is used where tensors are on a CPU, for which torch's own allocator keeps back much of what is freed."""
    return pool().used() if device.type == "cpu" else nullcontext()


@cache
def pool() -> Pool:
    """One a process; the first on a machine takes the compiler's seconds."""
    if os.environ.get(OFF) == "0":
        return Pool(None, f"{OFF}=0")
    if sys.platform != "linux":
        return Pool(None, "it is written for Linux")
    try:
        functions, _, compiler = loaded(_sources())
    except Uncompiled as error:
        return Pool(None, str(error))
    return Pool(functions, f"compiled by {compiler}")


def _sources() -> Sources:
    """Against the headers that torch brings."""
    library = str(TORCH / "lib")
    return Sources(
        language="C++",
        package="g++",
        compilers=("g++", "c++"),
        flags=(
            "-O2",
            "-std=c++20",
            "-shared",
            "-fPIC",
            "-Wall",
            "-Werror",
            "-isystem",
            str(TORCH / "include"),
            f"-DSPARED={SPARED}",
        ),
        files=(FOLDER / "pool.cpp",),
        libraries=(f"-L{library}", "-lc10", f"-Wl,-rpath,{library}"),
        known=(torch.__version__, str(torch.version.git_version)),
    )
