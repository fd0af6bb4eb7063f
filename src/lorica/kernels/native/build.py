"""The C files of this folder as one library: compiled once for this processor, kept in the user's cache, not required.

The name of what is kept is the digest of sources, flags, compiler and processor, so nothing stale is ever loaded.
"""

import ctypes
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from shutil import which

FOLDER = Path(__file__).parent
FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-std=gnu11", "-fno-math-errno", "-Wall", "-Werror")
NEEDED = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16")
"""Instructions that the kernels are written in; products of tiles (amx_bf16) are taken where there are any."""
COMPILERS = ("gcc", "cc")
GNU = "Free Software Foundation"
"""Said by GCC alone: what clang compiles brings an OpenMP of its own, whose threads stand beside those of torch."""
OPENMP = "libgomp.so.1"
"""That of torch, which the loader finds by this name once torch is loaded."""
OFF = "LORICA_NATIVE"
"""Set to 0, everything runs on torch."""
SECONDS = 120

Function = Callable[..., int]


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
    compiler = next(path for name in COMPILERS if (path := which(name)))
    try:
        version = _version(compiler)
        if GNU not in version:
            return Library(None, f"{Path(compiler).name} is not GCC: install gcc", "none")
        path = _built(compiler, version)
        functions = ctypes.CDLL(str(path))
        if functions.lorica_tiles():
            return Library(None, "the system keeps the processor's tiles from this process", "none")
        return Library(functions, f"compiled by {Path(compiler).name} for this processor", path.stem)
    except (OSError, subprocess.SubprocessError) as error:
        told = getattr(error, "stderr", None) or str(error)
        return Library(None, f"{Path(compiler).name} failed: {told.strip().splitlines()[0]}", "none")


def _missing() -> str | None:
    """What stands in the way, None where nothing does."""
    if os.environ.get(OFF) == "0":
        return f"{OFF}=0"
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "kernels in C are written for Linux on x86-64"
    if lacking := [name for name in NEEDED if name not in processor_flags()]:
        return f"this processor has no {', '.join(lacking)}"
    if not _is_loaded(OPENMP):
        return f"this torch has its threads from elsewhere than {OPENMP}"
    return None if any(map(which, COMPILERS)) else "no C compiler: install gcc"


def _is_loaded(name: str) -> bool:
    try:
        return bool(ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_LAZY))
    except OSError:
        return False


@cache
def processor_flags() -> frozenset[str]:
    """Of the first processor, as Linux names them; none where it does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))


def _built(compiler: str, version: str) -> Path:
    sources = sorted(FOLDER.glob("*.c"))
    place = _cache_folder() / f"{_digest(version, sources)}.so"
    if not place.exists():
        _compile(compiler, sources, place)
    return place


def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True, timeout=SECONDS).stdout


def _digest(version: str, sources: list[Path]) -> str:
    known = [version, *FLAGS, *sorted(processor_flags())]
    parts = [part.encode() for part in known] + [path.read_bytes() for path in (*sources, *sorted(FOLDER.glob("*.h")))]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]


def _compile(compiler: str, sources: list[Path], place: Path) -> None:
    """Into a file of its own first: another process may build the same."""
    with tempfile.NamedTemporaryFile(dir=place.parent, suffix=".so", delete=False) as made:
        command = [compiler, *FLAGS, *map(str, sources), "-o", made.name, "-lm"]
    try:
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS)
        os.replace(made.name, place)
    finally:
        Path(made.name).unlink(missing_ok=True)


def _cache_folder() -> Path:
    """A folder that is the user's alone: what lies in it is run.  OSError where there is none."""
    for folder in _places():
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        held = folder.stat()
        if held.st_uid == os.getuid() and not held.st_mode & 0o022 and os.access(folder, os.W_OK):
            return folder
    raise OSError("no folder of the user's own to keep a compiled library in")


def _places() -> Iterator[Path]:
    yield Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorica" / "native"
    yield Path(tempfile.gettempdir()) / f"lorica-native-{os.getuid()}"
