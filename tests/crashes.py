"""A machine that dies: what is on the disk when a process ends at the k-th call that changes it, for every k.

    killed     the process is gone; the disk is as it was
    torn       the power is gone too; names are as they were, bytes that were not synced are half there
    lost       the power is gone; bytes not synced are gone, and changes of names in folders not synced never happened
    reordered  as lost, but the last of those changes of names did happen

`crashes` runs an action to its death: by SIGKILL in a forked child for `killed`, and for the others, to be quick, in
this process, where no call changes the disk any more. `faults` lets the k-th call fail instead.
"""

import errno
import itertools
import os
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DISKS = ("killed", "torn", "lost", "reordered")
CALLS = ("open", "write", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir", "ftruncate")
REAL = {name: getattr(os, name) for name in CALLS}
CREATES = os.O_CREAT | os.O_TRUNC


class Died(BaseException):
    """Unwinds a process that is dead already."""


class Machine:
    """Stands between a process and `os`; `die_at` counts the calls that change the disk from 1."""

    def __init__(self, root: Path, die_at: int, disk: str, syncs: bool) -> None:
        self.root, self.die_at, self.disk, self.syncs = root, die_at, disk, syncs
        self.calls, self.dead = 0, False
        self.synced: dict[int, int] = {}  # inode -> bytes that are on the disk, for files with bytes that are not
        self.names: list[tuple[int, str, tuple[Any, ...]]] = []  # inode of the folder, change, what undoes it
        self.stash = Path(tempfile.mkdtemp(prefix="stash", dir=root.parent))

    def install(self) -> None:
        for name in CALLS:
            setattr(os, name, self.between(name))

    def remove(self) -> None:
        for name in CALLS:
            setattr(os, name, REAL[name])

    def between(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "open" and not args[1] & CREATES:
                return REAL["open"](*args, **kwargs)
            self.calls += 1
            if self.dead:
                raise Died
            if self.calls == self.die_at:
                self.die(name, args)
            return getattr(self, name)(*args, **kwargs)

        return call

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        new = not os.path.lexists(path)
        descriptor = REAL["open"](path, flags, mode, dir_fd=dir_fd)
        if new:
            self.changed(path, "create")
        if new or flags & os.O_TRUNC:
            self.synced[os.fstat(descriptor).st_ino] = 0
        return descriptor

    def write(self, descriptor: int, data: Any) -> int:
        status = os.fstat(descriptor)
        self.synced.setdefault(status.st_ino, status.st_size)
        return REAL["write"](descriptor, data)

    def ftruncate(self, descriptor: int, length: int) -> None:
        REAL["ftruncate"](descriptor, length)

    def fsync(self, descriptor: int) -> None:
        if self.syncs:
            inode = os.fstat(descriptor).st_ino
            self.synced.pop(inode, None)
            self.names = [change for change in self.names if change[0] != inode]

    def rename(self, source: Any, target: Any) -> None:
        over = self.stashed(target) if os.path.isfile(target) else None
        REAL["rename"](source, target)
        self.changed(source, "rename", Path(target).name, over)

    replace = rename

    def mkdir(self, path: Any, mode: int = 0o777) -> None:
        REAL["mkdir"](path, mode)
        self.changed(path, "create")

    def unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        path = whole(path, dir_fd)
        kept = self.stashed(path)
        REAL["unlink"](path)
        self.changed(path, "unlink", kept)

    def rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        path = whole(path, dir_fd)
        inode = os.stat(path).st_ino
        REAL["rmdir"](path)
        self.changed(path, "rmdir", inode)

    def stashed(self, path: Any) -> Path:
        kept = self.stash / str(self.calls)
        os.link(path, kept)
        return kept

    def changed(self, path: Any, change: str, *undo: Any) -> None:
        folder = os.stat(Path(path).parent).st_ino
        self.names.append((folder, change, (Path(path).name, *undo)))

    def die(self, name: str, args: tuple[Any, ...]) -> None:
        if name == "write":
            self.write(args[0], args[1][: len(args[1]) // 2])
        if self.disk == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        self.remove()
        if self.disk in ("lost", "reordered"):
            self.undo_names(self.names[:-1] if self.disk == "reordered" else self.names)
        self.lose_bytes()
        self.dead = True
        self.install()
        raise Died

    def undo_names(self, names: list[tuple[int, str, tuple[Any, ...]]]) -> None:
        reborn: dict[int, int] = {}  # inode of a removed folder -> that of the folder made in its place
        for inode, change, what in reversed(names):
            folder = reborn.get(inode, inode)
            path = next((Path(at) for at, _, _ in os.walk(self.root) if os.stat(at).st_ino == folder), None)
            if path is not None:
                undo(path, change, what)
                if change == "rmdir":
                    reborn[what[1]] = os.stat(path / what[0]).st_ino

    def lose_bytes(self) -> None:
        files = [Path(at, name) for at, _, names in os.walk(self.root) for name in names]
        for path in files:
            status = path.stat()
            if (on_disk := self.synced.get(status.st_ino)) is not None and on_disk < status.st_size:
                os.truncate(path, (on_disk + status.st_size) // 2 if self.disk == "torn" else on_disk)


def undo(folder: Path, change: str, what: tuple[Any, ...]) -> None:
    """Takes one change of a name back, as far as a later one that stays has not made it meaningless."""
    path = folder / what[0]
    if change == "create":
        erase(path)
    elif change == "rename":
        undo_rename(path, folder / what[1], what[2])
    elif not path.exists():
        os.link(what[1], path) if change == "unlink" else REAL["mkdir"](path)


def undo_rename(source: Path, target: Path, replaced: Path | None) -> None:
    if not target.exists():
        return
    if source.exists():
        erase(target)
    else:
        REAL["rename"](target, source)
    if replaced:
        os.link(replaced, target)


def erase(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        REAL["unlink"](path)


def whole(path: Any, dir_fd: int | None) -> Any:
    return path if dir_fd is None else os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), path)


def crashes(
    folder: Path, prepare: Callable[[Path], Any], action: Callable[[Path], Any], disk: str, syncs: bool = True
) -> Iterator[tuple[int, Path]]:
    """Each state a crash of `action` leaves: `(k, root)` for k = 1, 2, ..., until the action completes.

    `prepare(root)` fills a fresh folder and is on the disk. With `syncs=False` every fsync is in vain.
    """
    for die_at in itertools.count(1):
        root = folder / f"{disk}-{die_at}"
        root.mkdir(parents=True)
        prepare(root)
        if not died(Machine(root, die_at, disk, syncs), action):
            return
        yield die_at, root


def crash_after(
    folder: Path, prepare: Callable[[Path], Any], action: Callable[[Path], Any], disk: str, syncs: bool = True
) -> Path:
    """The state a crash leaves that comes when the action has returned."""
    root = folder / f"{disk}-after"
    root.mkdir(parents=True)
    prepare(root)
    machine = Machine(root, 0, disk, syncs)

    def act_and_die(root: Path) -> None:
        action(root)
        machine.die("", ())

    died(machine, act_and_die)
    return root


def died(machine: Machine, action: Callable[[Path], Any]) -> bool:
    if machine.disk == "killed":
        return killed(machine, action)
    machine.install()
    try:
        action(machine.root)
    except Died:
        return True
    finally:
        machine.remove()
    return False


def killed(machine: Machine, action: Callable[[Path], Any]) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on, for a fork beside torch's threads
        child = os.fork()
    if child == 0:
        machine.install()
        try:
            action(machine.root)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(3)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise AssertionError("the action failed by itself")
    return os.WIFSIGNALED(status)


def faults(
    folder: Path, prepare: Callable[[Path], Any], action: Callable[[Path], Any], code: int, forever: bool = False
) -> Iterator[tuple[int, Path, BaseException]]:
    """`(k, root, what was raised)` when the k-th call fails with errno `code` (with `forever`, those after it too)."""
    for fail_at in itertools.count(1):
        root = folder / f"{errno.errorcode[code]}-{forever}-{fail_at}"
        root.mkdir(parents=True)
        prepare(root)
        calls = itertools.count(1)
        raised = failing(action, root, lambda at=fail_at, n=calls: (k := next(n)) == at or (forever and k > at), code)
        if next(calls) <= fail_at:
            return
        if raised is None:
            raise AssertionError(f"call {fail_at} failed with {errno.errorcode[code]}, and nobody was told")
        yield fail_at, root, raised


def failing(action: Callable[[Path], Any], root: Path, fails: Callable[[], bool], code: int) -> BaseException | None:
    def between(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if (name != "open" or args[1] & CREATES) and fails():
                raise OSError(code, os.strerror(code))
            return real(*args, **kwargs)

        return call

    try:
        for name in CALLS:
            setattr(os, name, between(REAL[name], name))
        action(root)
    except Exception as error:
        return error
    finally:
        for name in CALLS:
            setattr(os, name, REAL[name])
    return None
