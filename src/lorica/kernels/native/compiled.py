"""Source files as a library: compiled once by GCC, kept in the user's cache, never required.

The name of what is kept is the digest of sources, flags, compiler and of what else decides it, so nothing stale is ever
loaded.
"""

import ctypes
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import which

FOLDER = Path(__file__).parent
GNU = "Free Software Foundation"
"""Said by GCC alone: what clang compiles brings an OpenMP of its own, whose threads stand beside those of torch."""
OFF = "LORICA_NATIVE"
"""Set to 0, everything runs on torch."""
SECONDS = 120


@dataclass(frozen=True)
class Sources:
    """compilers     by name, the first that is there; they are of `package`
    headers       what the files include of this folder
    libraries     arguments after the files
    known         what else decides the result
    """

    language: str
    package: str
    compilers: tuple[str, ...]
    flags: tuple[str, ...]
    files: tuple[Path, ...]
    headers: tuple[Path, ...] = ()
    libraries: tuple[str, ...] = ()
    known: tuple[str, ...] = ()

    def compiler(self) -> str:
        """Its path.  Uncompiled where there is none."""
        found = next((path for name in self.compilers if (path := which(name))), None)
        if found is None:
            raise Uncompiled(f"no {self.language} compiler: install {self.package}")
        return found

    def compile(self, compiler: str, place: Path) -> None:
        """Into a file of its own first: another process may build the same."""
        with tempfile.NamedTemporaryFile(dir=place.parent, suffix=".so", delete=False) as made:
            command = [compiler, *self.flags, *map(str, self.files), "-o", made.name, *self.libraries]
        try:
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS)
            os.replace(made.name, place)
        finally:
            Path(made.name).unlink(missing_ok=True)

    def digest(self, version: str) -> str:
        known = [version, *self.flags, *self.libraries, *self.known]
        parts = [part.encode() for part in known] + [path.read_bytes() for path in (*self.files, *self.headers)]
        return hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]


class Uncompiled(Exception):
    """Why there is no library, for the user."""


def loaded(sources: Sources) -> tuple[ctypes.CDLL, str, str]:
    """The library, its digest and the name of its compiler.  Uncompiled where there can be none."""
    compiler = sources.compiler()
    name = Path(compiler).name
    try:
        version = _version(compiler)
        if GNU not in version:
            raise Uncompiled(f"{name} is not GCC: install {sources.package}")
        place = _cache_folder() / f"{sources.digest(version)}.so"
        if not place.exists():
            sources.compile(compiler, place)
        return ctypes.CDLL(str(place)), place.stem, name
    except (OSError, subprocess.SubprocessError) as error:
        told = getattr(error, "stderr", None) or str(error)
        raise Uncompiled(f"{name} failed: {told.strip().splitlines()[0]}") from error


def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True, timeout=SECONDS).stdout


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
