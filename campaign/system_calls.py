"""Every system call of a process, one by one: it is killed before its k-th, or the k-th fails (ptrace(2), Linux).

The child asks to be traced and stops itself where its work begins; from there on it stops before and after each call,
and the tracer decides.  A process that is killed in the stop before a call dies without making it.
"""

import ctypes
import errno
import os
import platform
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from campaign.children import End, begun, end_of, ended

TRACEME, POKEUSER, SYSCALL, SETOPTIONS, GET_SYSCALL_INFO = 0, 6, 24, 0x4200, 0x420E
SYSCALLS_ARE_MARKED, EXIT_KILL = 1, 0x100000
MARKED = signal.SIGTRAP | 0x80
NUMBER, RESULT = 15 * 8, 10 * 8
"""Where x86-64 keeps a call's number and result in the registers of a stopped process."""
NOWHERE = -100
"""A folder descriptor that means the current folder."""

CREATES = os.O_CREAT | os.O_WRONLY | os.O_RDWR
BY_DESCRIPTOR = {
    0: "read", 1: "write", 5: "fstat", 17: "pread64", 18: "pwrite64", 20: "writev", 73: "flock", 74: "fsync",
    75: "fdatasync", 77: "ftruncate", 138: "fstatfs", 217: "getdents64",
}  # fmt: skip
BY_PATH = {
    2: "open", 4: "stat", 6: "lstat", 21: "access", 76: "truncate", 82: "rename", 83: "mkdir", 84: "rmdir",
    87: "unlink", 89: "readlink", 137: "statfs",
}  # fmt: skip
BY_FOLDER_AND_PATH = {
    257: "openat", 258: "mkdirat", 262: "newfstatat", 263: "unlinkat", 264: "renameat", 267: "readlinkat",
    269: "faccessat", 316: "renameat2", 332: "statx",
}  # fmt: skip
CHANGING = {
    "write", "pwrite64", "writev", "fsync", "fdatasync", "ftruncate", "truncate", "rename", "renameat", "renameat2",
    "mkdir", "mkdirat", "rmdir", "unlink", "unlinkat", "open for writing",
}  # fmt: skip
"""Calls that change files or bring them to the disk; the others of the tables only read."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


class _Info(ctypes.Structure):
    """struct ptrace_syscall_info, as far as the entry of a call."""

    _fields_ = (
        ("op", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
        ("arch", ctypes.c_uint32),
        ("instruction", ctypes.c_uint64),
        ("stack", ctypes.c_uint64),
        ("number", ctypes.c_uint64),
        ("arguments", ctypes.c_uint64 * 6),
        ("rest", ctypes.c_uint64 * 2),
    )


@dataclass(frozen=True)
class Call:
    """A call on a file: its name and the path."""

    name: str
    path: str

    @property
    def changes(self) -> bool:
        return self.name in CHANGING


@dataclass(frozen=True)
class Traced:
    """How a traced child ended, the calls it had begun, and for `failing` those that were counted."""

    end: End
    calls: int
    struck: Call | None = None


def unavailable() -> str | None:
    """Why calls cannot fail on purpose here; None where they can."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"calls are made to fail on Linux x86_64 alone, and this is {platform.system()} {platform.machine()}"
    return None


def killed_at(k: int, work: Callable[[], object], said: Path) -> Traced:
    """`work` in a child that dies before its k-th system call, counted from 1; k=0 lets it live."""
    child = _stopped_child(work, said)
    calls = 0
    while True:
        ended_with = _to_next_stop(child)
        if ended_with is not None:
            return Traced(end_of(ended_with, said), calls)
        calls += 1
        if calls == k:
            os.kill(child, signal.SIGKILL)
            return Traced(ended(child, said), calls)
        ended_with = _to_next_stop(child)
        if ended_with is not None:
            return Traced(end_of(ended_with, said), calls)


def failing(strikes: Callable[[Call], bool], code: int, inside: Path, work: Callable[[], object], said: Path) -> Traced:
    """`work` in a child, where calls on files under `inside` fail with `code` when `strikes(call)`.

    `calls` counts the calls on those files; `struck` is the first that failed.
    """
    child = _stopped_child(work, said)
    calls, struck = 0, None
    while True:
        if (status := _to_next_stop(child)) is not None:
            return Traced(end_of(status, said), calls, struck)
        call = _call(child)
        fails = False
        if call is not None and _is_under(call.path, inside):
            calls += 1
            fails = strikes(call)
            struck = struck or (call if fails else None)
        if fails:
            _ptrace(POKEUSER, child, NUMBER, -1)
        if (status := _to_next_stop(child)) is not None:
            return Traced(end_of(status, said), calls, struck)
        if fails:
            _ptrace(POKEUSER, child, RESULT, -code)


def _stopped_child(work: Callable[[], object], said: Path) -> int:
    def traced() -> object:
        _ptrace(TRACEME, 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        return work()

    child = begun(traced, said)
    _, status = os.waitpid(child, 0)
    if not os.WIFSTOPPED(status):
        raise RuntimeError(f"a child cannot be traced here: {said.read_text()}")
    _ptrace(SETOPTIONS, child, 0, SYSCALLS_ARE_MARKED | EXIT_KILL)
    return child


def _to_next_stop(child: int) -> int | None:
    """Runs to the next stop before or after a call; the status when it ended instead."""
    passed_on = 0
    while True:
        _ptrace(SYSCALL, child, 0, passed_on)
        _, status = os.waitpid(child, 0)
        if not os.WIFSTOPPED(status):
            return status
        if os.WSTOPSIG(status) == MARKED:
            return None
        passed_on = os.WSTOPSIG(status)


def _call(child: int) -> Call | None:
    """The call that a child stands before, when it is one on files."""
    info = _Info()
    _ptrace(GET_SYSCALL_INFO, child, ctypes.sizeof(info), ctypes.addressof(info))
    number, arguments = info.number, info.arguments
    if number in BY_DESCRIPTOR:
        return Call(BY_DESCRIPTOR[number], _link(child, f"fd/{arguments[0]}"))
    if number in BY_PATH:
        name, folder, path = BY_PATH[number], NOWHERE, _text(child, arguments[0])
        flags = arguments[1]
    elif number in BY_FOLDER_AND_PATH:
        name, folder, path = BY_FOLDER_AND_PATH[number], _signed(arguments[0]), _text(child, arguments[1])
        flags = arguments[2]
    else:
        return None
    if name in ("open", "openat") and flags & CREATES:
        name = "open for writing"
    return Call(name, os.path.join(_link(child, "cwd" if folder == NOWHERE else f"fd/{folder}"), path))


def _signed(value: int) -> int:
    return ctypes.c_int32(value & 0xFFFFFFFF).value


def _link(child: int, name: str) -> str:
    try:
        return os.readlink(f"/proc/{child}/{name}")
    except OSError:
        return ""


def _text(child: int, address: int) -> str:
    with open(f"/proc/{child}/mem", "rb", buffering=0) as memory:
        try:
            memory.seek(address)
            return os.fsdecode(memory.read(4096).partition(b"\0")[0])
        except (OSError, ValueError, OverflowError):
            return ""


def _is_under(path: str, folder: Path) -> bool:
    return path == str(folder) or path.startswith(f"{folder}/")


def _ptrace(request: int, child: int, address: int, data: int) -> None:
    if _libc.ptrace(request, child, address, data) == -1 and (code := ctypes.get_errno()) != 0:
        raise OSError(code, f"ptrace {request}: {os.strerror(code)} ({errno.errorcode.get(code, code)})")
