"""A file system of every size from what a half-done run takes to more than it needs; and one short of inodes.

A run that does not fit says in one line that the disk is full and exits with 1; what was there is still good; given
room, it goes on and ends as if it had always had it.  Each size is a tmpfs in a mount namespace of its own.
"""

import ctypes
import json
import os
from collections.abc import Iterator
from pathlib import Path

from campaign import trees
from campaign.children import done
from campaign.command_run import told_well
from campaign.faults import workplace
from campaign.ledger import Tally

NEW_MOUNTS, NEW_USER = 0x00020000, 0x10000000
RECURSIVE, PRIVATE, REMOUNT = 0x4000, 1 << 18, 0x20
ROOMY = "size=64m,nr_inodes=4096"
SIZES, INODES = 100, 32
CHUNK = 12

_libc = ctypes.CDLL(None, use_errno=True)


def at_every_size(place: Path, chunk: int, size: int) -> Iterator[Tally]:
    """Chunk: every how-manieth of the sizes and inode counts; `size`: how many of it at most."""
    if why := _unavailable(place):
        yield Tally(refused=why)
        return
    begin, end = _needs(place)
    step = max(4096, 2 * (end[0] - begin[0]) // SIZES // 4096 * 4096)
    options = [f"size={begin[0] + step * n},nr_inodes=4096" for n in range(SIZES)]
    options += [f"size=64m,nr_inodes={begin[1] + n}" for n in range(INODES)]
    for option in options[chunk::CHUNK][:size]:
        case = place / "case"
        case.mkdir(exist_ok=True)
        found = _in_namespace(case, option, place / "found.json")
        kind = "too_small" if found["status"] else "large_enough"
        yield Tally(1, {kind: 1}, [f"{option}: {wrong}" for wrong in found["wrong"]])


def _needs(place: Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """(bytes, inodes) that a half-done run takes, and those of a finished one with a checkpoint more."""
    case = place / "needs"
    case.mkdir()
    found = _in_namespace(case, ROOMY, place / "needs.json")
    return tuple(found["began"]), tuple(found["ended"])  # type: ignore[return-value]


def _in_namespace(case: Path, option: str, result: Path) -> dict:
    said = case.with_name("namespace.said")
    end = done(lambda: result.write_text(json.dumps(_try(case, option))) and None, said)
    if end.status or end.signal:
        raise RuntimeError(f"{option}: {end.said}")
    return json.loads(result.read_text())


def _try(case: Path, option: str) -> dict:
    """In a process whose mounts nobody else sees: a run in too little room, then in enough."""
    _leave()
    _mount(case, ROOMY, 0)
    at = workplace()
    trees.copy(at.half, case / "run")
    began = _used(case)
    _mount(case, option, REMOUNT)
    end = done(at.train(case), case.with_name("case.said"))
    found = {"status": end.status, "began": began, "ended": _used(case), "wrong": []}
    _mount(case, ROOMY, REMOUNT)
    if end.status == 0:
        return found | {"wrong": at.difference(case)}
    wrong = told_well(end, case, "free") + at.harm(case)
    again = done(at.train(case), case.with_name("case.said"))
    wrong += [f"the next run failed: {again.said[-200:]}"] if again.status else at.difference(case)
    return found | {"wrong": wrong}


def _used(folder: Path) -> tuple[int, int]:
    status = os.statvfs(folder)
    return (status.f_blocks - status.f_bfree) * status.f_frsize, status.f_files - status.f_ffree


def _unavailable(place: Path) -> str | None:
    case = place / "try"
    case.mkdir(exist_ok=True)

    def mounted() -> None:
        _leave()
        _mount(case, ROOMY, 0)

    end = done(mounted, place / "try.said")
    return f"no tmpfs can be mounted here: {end.said.strip().splitlines()[-1]}" if end.status else None


def _leave() -> None:
    """Into mounts of our own: as root at once, otherwise as root of a user namespace of our own."""
    user, group = os.getuid(), os.getgid()
    if _libc.unshare(NEW_MOUNTS) == -1:
        _checked(_libc.unshare(NEW_MOUNTS | NEW_USER), "unshare")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _checked(_libc.mount(b"none", b"/", None, RECURSIVE | PRIVATE, None), "mount")


def _mount(folder: Path, option: str, flags: int) -> None:
    _checked(_libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", flags, option.encode()), f"mount -o {option}")


def _checked(answer: int, what: str) -> None:
    if answer == -1:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
