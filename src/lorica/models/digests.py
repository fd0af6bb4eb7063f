"""Digests of checkpoints that were computed before, by the identity of their files: name, size, times and inode.

    <cache>/lorica/digests/<hash of the folder>.json      {files, digests, check}

Safe to lose, and safe to damage: an entry counts only while its `check` is the SHA-256 of the rest and its files are
what they were.  A file changed in the last two seconds is not remembered, because the clock of a file system is too
coarse to tell a second change.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lorica import durable
from lorica.errors import LoricaError

SETTLED_NS = 2_000_000_000
Identity = list[list[Any]]


def remembered(kind: str, files: Sequence[Path], compute: Callable[[], str]) -> str:
    """The digest of this kind of these files: the one computed before, or a new one."""
    known = recalled(kind, files)
    if known is not None:
        return known
    before = identity(files)
    digest = compute()
    if identity(files) == before and _settled(before):
        _remember(kind, files, before, digest)
    return digest


def recalled(kind: str, files: Sequence[Path]) -> str | None:
    """The digest, if it was computed for files of this very identity."""
    digest = _entry(files)["digests"].get(kind)
    return digest if isinstance(digest, str) else None


def identity(files: Sequence[Path]) -> Identity:
    """Name, size, time of the last write, of the last change of any kind, inode and device of each file."""
    stats = [(file.name, file.stat()) for file in files]
    return [[name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, s.st_dev] for name, s in stats]


def folder() -> Path:
    """Where digests are kept: under $XDG_CACHE_HOME, else ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lorica" / "digests"


def _place(files: Sequence[Path]) -> Path:
    name = hashlib.sha256(str(files[0].parent.absolute()).encode()).hexdigest()[:32]
    return folder() / f"{name}.json"


def _entry(files: Sequence[Path]) -> dict[str, Any]:
    """What is kept for these files, empty unless it is whole and they are as they were."""
    blank: dict[str, Any] = {"files": identity(files), "digests": {}}
    try:
        kept = durable.read_json(_place(files))
        whole = kept["check"] == _check(kept["files"], kept["digests"]) and isinstance(kept["digests"], dict)
    except (LoricaError, OSError, RuntimeError, KeyError, TypeError):
        return blank
    return kept if whole and kept["files"] == blank["files"] else blank


def _remember(kind: str, files: Sequence[Path], found: Identity, digest: str) -> None:
    """Nobody is told when the cache cannot be written: the next call computes the digest again."""
    digests = {**_entry(files)["digests"], kind: digest}
    entry = {"files": found, "digests": digests, "check": _check(found, digests)}
    with suppress(LoricaError, OSError, RuntimeError):
        durable.write_json(_place(files), entry)


def _check(files: Any, digests: Any) -> str:
    return hashlib.sha256(json.dumps([files, digests], sort_keys=True).encode()).hexdigest()


def _settled(found: Identity) -> bool:
    newest = max(max(entry[2], entry[3]) for entry in found)
    return time.time_ns() - newest > SETTLED_NS
