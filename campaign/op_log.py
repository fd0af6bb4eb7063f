"""What a piece of work does to a folder, as operations on a model of the disk, and the disks that a crash can leave.

    write, cut   of a file; on the disk for certain once that file is synced
    names        an entry of a folder made, removed or renamed; on the disk for certain once that folder is synced
    sync         of a file or folder

At a crash, of the operations not yet certain any may be on the disk and any not, whatever their order; of a write, any
first part, or its length with zeros for its bytes.  A rename is on the disk as a whole or not at all.  That is what
POSIX allows and more than any one file system does (Pillai et al., "All File Systems Are Not Created Equal", 2014).
"""

import hashlib
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CALLS = ("open", "write", "pwrite", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir", "ftruncate", "truncate")
REAL: dict[str, Any] = {name: getattr(os, name) for name in CALLS}
SECTOR = 512
ROOT = 0

Files = dict[int, bytes]
Folders = dict[int, dict[str, int]]


@dataclass(frozen=True)
class Write:
    inode: int
    offset: int
    data: bytes


@dataclass(frozen=True)
class Cut:
    inode: int
    length: int


@dataclass(frozen=True)
class Names:
    """Entries (folder, name, inode or None where it goes away), changed together."""

    entries: tuple[tuple[int, str, int | None], ...]


@dataclass(frozen=True)
class Sync:
    inode: int


@dataclass(frozen=True)
class Mark:
    """Something is promised from here on."""

    promise: Any


Op = Write | Cut | Names | Sync | Mark


class Disk:
    """Files and folders by inode; folder 0 is the root.  What no name leads to may be in it."""

    def __init__(self, files: Files, folders: Folders) -> None:
        self.files, self.folders = files, folders

    @classmethod
    def of(cls, root: Path) -> "Disk":
        disk = cls({}, {ROOT: {}})
        disk._read(root, ROOT)
        return disk

    def _read(self, folder: Path, inode: int) -> None:
        for path in sorted(folder.iterdir()):
            new = self.new()
            self.folders[inode][path.name] = new
            if path.is_dir():
                self.folders[new] = {}
                self._read(path, new)
            else:
                self.files[new] = path.read_bytes()

    def new(self) -> int:
        return len(self.files) + len(self.folders)

    def copy(self) -> "Disk":
        return Disk(dict(self.files), {inode: dict(entries) for inode, entries in self.folders.items()})

    def apply(self, op: Op) -> None:
        if isinstance(op, Write):
            data = self.files[op.inode].ljust(op.offset, b"\0")
            self.files[op.inode] = data[: op.offset] + op.data + data[op.offset + len(op.data) :]
        elif isinstance(op, Cut):
            self.files[op.inode] = self.files[op.inode][: op.length].ljust(op.length, b"\0")
        elif isinstance(op, Names):
            for folder, name, inode in op.entries:
                if inode is None:
                    self.folders[folder].pop(name, None)
                else:
                    self.folders[folder][name] = inode

    def find(self, parts: tuple[str, ...]) -> int | None:
        inode: int | None = ROOT
        for part in parts:
            inode = self.folders.get(inode, {}).get(part) if inode is not None else None
        return inode

    def tree(self, inode: int = ROOT) -> dict[str, Any]:
        """Names to bytes or trees: what a reader finds."""
        return {
            name: self.tree(found) if found in self.folders else self.files[found]
            for name, found in sorted(self.folders[inode].items())
        }


class Recorder:
    """Stands between a piece of work and `os`: all is done as usual, and what touches the folder is written down."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.before = Disk.of(root)
        self.live = self.before.copy()
        self.log: list[Op] = []
        self._inodes: dict[int, int] = {}

    def mark(self, promise: Any) -> None:
        self.log.append(Mark(promise))

    def note(self, op: Op) -> None:
        self.log.append(op)
        self.live.apply(op)

    def place(self, path: Any, dir_fd: int | None = None) -> tuple[str, ...] | None:
        """The parts of a path inside the folder, None for one elsewhere."""
        whole = os.fsdecode(path)
        if dir_fd is not None:
            whole = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), whole)
        whole = os.path.abspath(whole)
        inside = whole == str(self.root) or whole.startswith(f"{self.root}/")
        return Path(whole).relative_to(self.root).parts if inside else None

    def entry(self, parts: tuple[str, ...], inode: int | None) -> tuple[int, str, int | None]:
        folder = self.live.find(parts[:-1])
        if folder is None:
            raise RuntimeError(f"{'/'.join(parts)} was changed behind the recorder's back")
        return folder, parts[-1], inode

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        parts = self.place(path, dir_fd)
        descriptor = REAL["open"](path, flags, mode, dir_fd=dir_fd)
        self._inodes.pop(descriptor, None)
        if parts is None:
            return descriptor
        inode = self.live.find(parts)
        if inode is None:
            inode = self.live.new()
            self.live.files[inode] = b""
            self.note(Names((self.entry(parts, inode),)))
        elif flags & os.O_TRUNC:
            self.note(Cut(inode, 0))
        self._inodes[descriptor] = inode
        return descriptor

    def write(self, descriptor: int, data: Any) -> int:
        inode = self._inodes.get(descriptor)
        if inode is None:
            return REAL["write"](descriptor, data)
        written = REAL["write"](descriptor, data)
        offset = os.lseek(descriptor, 0, os.SEEK_CUR) - written
        self.note(Write(inode, offset, bytes(data)[:written]))
        return written

    def pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        written = REAL["pwrite"](descriptor, data, offset)
        if descriptor in self._inodes:
            self.note(Write(self._inodes[descriptor], offset, bytes(data)[:written]))
        return written

    def fsync(self, descriptor: int) -> None:
        if descriptor in self._inodes:
            self.note(Sync(self._inodes[descriptor]))

    def ftruncate(self, descriptor: int, length: int) -> None:
        REAL["ftruncate"](descriptor, length)
        if descriptor in self._inodes:
            self.note(Cut(self._inodes[descriptor], length))

    def truncate(self, path: Any, length: int) -> None:
        REAL["truncate"](path, length)
        if (parts := self.place(path)) is not None:
            inode = self.live.find(parts)
            assert inode is not None
            self.note(Cut(inode, length))

    def rename(self, source: Any, target: Any) -> None:
        REAL["rename"](source, target)
        here, there = self.place(source), self.place(target)
        if here is not None and there is not None:
            inode = self.live.find(here)
            self.note(Names((self.entry(here, None), self.entry(there, inode))))

    replace = rename

    def mkdir(self, path: Any, mode: int = 0o777) -> None:
        REAL["mkdir"](path, mode)
        if (parts := self.place(path)) is not None:
            inode = self.live.new()
            self.live.folders[inode] = {}
            self.note(Names((self.entry(parts, inode),)))

    def unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        parts = self.place(path, dir_fd)
        REAL["unlink"](path, dir_fd=dir_fd)
        if parts is not None:
            self.note(Names((self.entry(parts, None),)))

    def rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        parts = self.place(path, dir_fd)
        REAL["rmdir"](path, dir_fd=dir_fd)
        if parts is not None:
            self.note(Names((self.entry(parts, None),)))


@contextmanager
def recording(root: Path) -> Iterator[Recorder]:
    """Records while the block runs; RuntimeError when the folder changed in ways the record does not hold."""
    recorder = Recorder(root)
    try:
        for name in CALLS:
            setattr(os, name, getattr(recorder, name))
        yield recorder
    finally:
        for name in CALLS:
            setattr(os, name, REAL[name])
    if recorder.live.tree() != Disk.of(root).tree():
        raise RuntimeError(f"{root}: the record does not lead to what is there")


@dataclass(frozen=True)
class Crash:
    """A disk after a crash before operation `at`; `promised` is the last promise that was made before it."""

    at: int
    promised: Any
    tree: dict[str, Any]

    def key(self) -> bytes:
        return hashlib.sha256(repr((self.promised, self.tree)).encode()).digest()


def crashes(recorder: Recorder, number: int, seed: str) -> Iterator[Crash]:
    """Different disks that a crash of the recorded work can leave: the plainest of every instant, then drawn ones.

    At most `number`, fewer when draws bring nothing new any more; none before the first promise.
    """
    chance, seen = random.Random(seed), set()
    log = recorder.log
    start = recorder.before.copy()
    for inode in recorder.live.files:
        start.files.setdefault(inode, b"")
    for inode in recorder.live.folders:
        start.folders.setdefault(inode, {})
    instants = [instant for at in range(len(log) + 1) if (instant := _Instant(log, at, start)).promised is not None]
    stale = 0
    choices = ((instant, choose) for choose in (_none, _all) for instant in instants)
    while len(seen) < number and stale < 200 + 20 * len(instants):
        instant, choose = next(choices, (None, _some))
        crash = (instant or chance.choice(instants)).crash(choose, chance)
        stale += 1
        if (key := crash.key()) not in seen:
            seen.add(key)
            stale = 0
            yield crash


class _Instant:
    """What is certain when the power fails before operation `at`, and what is not."""

    def __init__(self, log: list[Op], at: int, start: Disk) -> None:
        self.at, self.start = at, start
        self.promised = next((op.promise for op in reversed(log[:at]) if isinstance(op, Mark)), None)
        synced: set[int] = set()
        self.ops: list[tuple[Op, bool]] = []
        for op in reversed(log[:at]):
            if isinstance(op, Sync):
                synced.add(op.inode)
            elif not isinstance(op, Mark):
                self.ops.append((op, _touched(op) <= synced))
        self.ops.reverse()

    def crash(self, choose: Callable[[Op, random.Random], Op | None], chance: random.Random) -> Crash:
        disk = self.start.copy()
        for op, certain in self.ops:
            happened = op if certain else choose(op, chance)
            if happened is not None:
                disk.apply(happened)
        return Crash(self.at, self.promised, disk.tree())


def _touched(op: Op) -> set[int]:
    return {folder for folder, _, _ in op.entries} if isinstance(op, Names) else {op.inode}  # type: ignore[union-attr]


def _none(op: Op, chance: random.Random) -> None:
    return None


def _all(op: Op, chance: random.Random) -> Op:
    return op


def _some(op: Op, chance: random.Random) -> Op | None:
    draw = chance.random()
    if draw < 0.4:
        return None
    if not isinstance(op, Write) or draw < 0.6:
        return op
    if draw < 0.7:
        return Write(op.inode, op.offset, bytes(len(op.data)))
    length = chance.randrange(len(op.data) + 1)
    return Write(op.inode, op.offset, op.data[: length // SECTOR * SECTOR if draw < 0.85 else length])


def write_out(tree: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in tree.items():
        if isinstance(data, dict):
            write_out(data, folder / name)
        else:
            (folder / name).write_bytes(data)
