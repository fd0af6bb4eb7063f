"""The C files of this folder as one library, for this processor."""

import ctypes
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from torch import Tensor

from lorica.kernels.native.compiled import FOLDER, OFF, Sources, Uncompiled, loaded

FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-std=gnu11", "-fno-math-errno")
NEEDED = ("avx2", "fma")
"""Instructions that the kernels are written in; AVX-512 and products of pairs and of tiles are taken where they are."""
WIDEST = "ONEDNN_MAX_CPU_ISA"
"""oneDNN's own variable: torch's products take nothing wider, and ours do not either."""
TILES = frozenset({"amx_tile", "amx_bf16", "amx_int8"})
LEFT_OUT = {
    **dict.fromkeys(("SSE41", "AVX"), TILES | {"avx512f", "avx512_bf16", *NEEDED}),
    **dict.fromkeys(("AVX2", "AVX2_VNNI", "AVX2_VNNI_2"), TILES | {"avx512f", "avx512_bf16"}),
    **dict.fromkeys(("AVX512_CORE", "AVX512_CORE_VNNI"), TILES | {"avx512_bf16"}),
    **dict.fromkeys(("AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10_1_512"), TILES),
}
SLOW_PAIRS = "GenuineIntel"
"""Who makes processors on which a product of pairs of bfloat16 takes four times as long as one of float32: products
without tiles are in float32 there, 1.4 times as quick."""
OPENMP = "libgomp.so.1"
"""That of torch, which the loader finds by this name once torch is loaded."""

Function = Callable[..., int]


def address(tensor: Tensor | None) -> int:
    """Of its first element; the caller holds the tensor until the function has returned."""
    return 0 if tensor is None else tensor.data_ptr()


def whole(tensor: Tensor | None) -> Tensor | None:
    """As C reads it."""
    return None if tensor is None else tensor.contiguous()


@dataclass(frozen=True)
class Library:
    """The functions, or why there are none.  `name` stands for what decides their bits."""

    functions: ctypes.CDLL | None
    why: str
    name: str

    @property
    def lacking(self) -> str | None:
        return None if self.functions else self.why

    def function(self, name: str, pointers: int, *numbers: type) -> Function:
        """One of them, called with the addresses of its tensors and then its numbers."""
        found = getattr(self.functions, name)
        found.argtypes = [*[ctypes.c_void_p] * pointers, *numbers]
        return found


@cache
def library() -> Library:
    """Loaded once a process; the first on a machine takes the compiler's seconds."""
    if reason := _missing():
        return Library(None, reason, "none")
    try:
        functions, digest, compiler = loaded(sources(sorted(FOLDER.glob("*.c"))))
    except Uncompiled as error:
        return Library(None, str(error), "none")
    if functions.lorica_tiles():
        return Library(None, "the system keeps the processor's tiles from this process", "none")
    return Library(functions, f"compiled by {compiler} for this processor", digest)


def sources(files: list[Path]) -> Sources:
    return Sources(
        language="C",
        package="gcc",
        compilers=("gcc", "cc"),
        flags=(*FLAGS, *_without(left_out() & processor_flags()), *_widened()),
        files=tuple(files),
        headers=tuple(sorted(FOLDER.glob("*.h"))),
        libraries=("-lm",),
        known=tuple(sorted(processor_flags())),
    )


def _without(names: frozenset[str]) -> list[str]:
    return [f"-mno-{name.replace('avx512_', 'avx512').replace('_', '-')}" for name in sorted(names)]


def _widened() -> tuple[str, ...]:
    tiles = (processor_flags() - left_out()).issuperset(TILES)
    return ("-DWIDENED",) if not tiles and _told("vendor_id") == [SLOW_PAIRS] else ()


def _missing() -> str | None:
    """What stands in the way, None where nothing does."""
    if os.environ.get(OFF) == "0":
        return f"{OFF}=0"
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "kernels in C are written for Linux on x86-64"
    if lacking := [name for name in NEEDED if name not in processor_flags()]:
        return f"this processor has no {', '.join(lacking)}"
    if lacking := [name for name in NEEDED if name in left_out()]:
        return f"{WIDEST}={os.environ[WIDEST]} leaves out {', '.join(lacking)}"
    return None if _is_loaded(OPENMP) else f"this torch has its threads from elsewhere than {OPENMP}"


def _is_loaded(name: str) -> bool:
    try:
        return bool(ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_LAZY))
    except OSError:
        return False


def left_out() -> frozenset[str]:
    """Instructions that the user keeps from products."""
    return LEFT_OUT.get(os.environ.get(WIDEST, "").upper(), frozenset())


@cache
def processor_flags() -> frozenset[str]:
    """Of the first processor, as Linux names them; none where it does not tell."""
    return frozenset(_told("flags"))


def _told(what: str) -> list[str]:
    """The words of the first line of its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return next((line.partition(":")[2].split() for line in lines if line.startswith(what)), [])
