"""A fork server: torch is imported once, and every run is a forked child that may die.

The server itself never runs a backward pass, since a child of a process that did cannot run one.
"""

import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

FAILED = 70
"""Exit status of a child whose work raised."""
SHORTEST = 0.0002


@dataclass(frozen=True)
class End:
    """How a child ended: by a signal, or with an exit status and what it said on stderr."""

    signal: int
    status: int
    said: str = ""

    @property
    def killed(self) -> bool:
        return self.signal == signal.SIGKILL


def begun(work: Callable[[], object], said: Path) -> int:
    """The process of a child that does `work`; what it prints goes to the file `said`."""
    sys.stdout.flush()
    sys.stderr.flush()
    gc.freeze()  # the first collection in the child would copy every page that holds an object: 0.4 s of 1.5
    child = os.fork()
    if child == 0:
        os._exit(_status_of(work, said))
    return child


def _status_of(work: Callable[[], object], said: Path) -> int:
    try:
        descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)
        status = work()
    except BaseException:
        traceback.print_exc()
        status = FAILED
    sys.stdout.flush()
    sys.stderr.flush()
    return status if isinstance(status, int) else 0


def ended(child: int, said: Path) -> End:
    return end_of(os.waitpid(child, 0)[1], said)


def end_of(status: int, said: Path) -> End:
    text = said.read_text(errors="replace") if said.exists() else ""
    if os.WIFSIGNALED(status):
        return End(os.WTERMSIG(status), -1, text)
    return End(0, os.WEXITSTATUS(status), text)


def done(work: Callable[[], object], said: Path) -> End:
    return ended(begun(work, said), said)


def killed_after(seconds: float, work: Callable[[], object], said: Path) -> End:
    """As `done`, with a SIGKILL when the child has used some seconds of processor time, if it still runs then.

    Its own clock, so that the instants are spread over its work whatever else the machine does.
    """
    child = begun(work, said)
    while (left := seconds - _used(child)) > 0:
        time.sleep(max(left, SHORTEST))
        if (status := os.waitpid(child, os.WNOHANG))[0]:
            return end_of(status[1], said)
    os.kill(child, signal.SIGKILL)
    return ended(child, said)


def _used(child: int) -> float:
    """Processor seconds of a process that has not been waited for; the clock's number is the kernel's encoding."""
    return time.clock_gettime((~child << 3) | 2)


def processor_seconds(work: Callable[[], object], said: Path) -> float:
    """What `work` takes in a child."""
    _, status, usage = os.wait4(begun(work, said), 0)
    if end_of(status, said).status != 0:
        raise RuntimeError(said.read_text())
    return usage.ru_utime + usage.ru_stime
