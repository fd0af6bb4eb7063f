"""A supervisor for `lorica train`: the run is a process of its own, which memory may end at any instant.

    ended by itself                   its exit status, unchanged
    ended for want of memory          gone on with from the newest checkpoint in smaller micro-batches, or one line
    ended by any other signal         this process ends by it too

What a step learns stays the same: the process that goes on computes fewer tokens at a time, and the run folder keeps
that.  Each time they are fewer, or another checkpoint is there, so it ends.  Nothing here imports torch.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from lorica.cli.output import complain, say
from lorica.cli.supervised import SUPERVISED, read
from lorica.errors import ROUNDING, WHAT_FITS

RESTARTS = 20
COPY = 0.1
"""Seconds in which a signal to the whole process group, such as a terminal's Ctrl-C, has reached the other process."""
WITHOUT_A_WORD = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS)
"""Signals by which native code ends that is given no memory."""


@dataclass(frozen=True)
class End:
    """How a process ended.

    status    below 0: the signal; note: what it told last
    killed    whether the system counts a process that it killed for memory since (None: it does not count)
    saved     step of the newest checkpoint; before: of the newest when the process before it ended
    began     tokens at a time that it was told to begin with, 0: none
    """

    status: int
    note: Mapping[str, Any]
    killed: bool | None
    saved: int | None
    before: int | None
    began: int

    @property
    def of_memory(self) -> bool:
        if "no_room" in self.note or -self.status in WITHOUT_A_WORD:
            return True
        if self.status == -signal.SIGKILL:
            return self.killed is not False
        return self.status > 0 and "status" not in self.note

    @property
    def next(self) -> int | None:
        """Tokens at a time with which a new process may come further; None where nothing says so."""
        tokens, smaller = self.note.get("tokens"), self.note.get("smaller")
        if tokens is None or smaller is not None:
            return smaller
        return tokens if tokens != self.began or self.saved != self.before else None

    @property
    def how(self) -> str:
        return signal.Signals(-self.status).name if self.status < 0 else f"exit status {self.status}"


class Supervisor:
    """`command` without `--resume` where it begins a run anew."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)
        self.wishes = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.heard = -1

    def run(self) -> int:
        """The exit status of the whole."""
        with self._hearing():
            end = self._ended(0, None)
            for _ in range(RESTARTS):
                if not end.of_memory or end.next is None or self.wishes:
                    break
                say(_going_on(end))
                end = self._ended(end.next, end.saved)
        if end.of_memory:
            complain(_last_word(end))
            return 1
        return end.status if end.status >= 0 else _ended_by(-end.status)

    def _ended(self, tokens: int, before: int | None) -> End:
        """A process that goes on where `tokens` says how many at a time, waited for."""
        resumed = [] if not tokens or "--resume" in self.command else ["--resume"]
        note, self.heard = os.memfd_create("note"), os.memfd_create("heard")
        os.set_blocking(self.heard, False)
        kills = _kills()
        self.process = subprocess.Popen(
            [*self.command, *resumed],
            env={**os.environ, SUPERVISED: f"{os.getpid()}:{note}:{self.heard}:{tokens}"},
            pass_fds=(note, self.heard),
        )
        self._hand_on(signal.SIGINT)
        status = self.process.wait()
        self.process = None
        found, now = read(note), _kills()
        os.close(note)
        os.close(self.heard)
        return End(
            status=status,
            note=found,
            killed=None if kills is None or now is None else now > kills,
            saved=_saved(found),
            before=before,
            began=tokens,
        )

    @contextmanager
    def _hearing(self) -> Iterator[None]:
        heard = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._arrived) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        """Handed on, once: a signal to both processes is one wish."""
        self.wishes += 1
        time.sleep(COPY)
        self._hand_on(number)

    def _hand_on(self, number: int) -> None:
        if self.process is not None and os.fstat(self.heard).st_size < self.wishes:
            self.process.send_signal(number)


def supervised_command() -> list[str] | None:
    """How this process was started, where that was for `lorica train` and the system lets it be supervised."""
    if sys.platform != "linux" or sys.argv[1:2] != ["train"] or "--help" in sys.argv:
        return None
    return [sys.executable, *sys.orig_argv[1:]]


def _going_on(end: End) -> str:
    after = "the beginning" if end.saved is None else f"step {end.saved}"
    return f"{_what(end)}; going on from {after} with {end.next:,} tokens at a time, {ROUNDING}"


def _last_word(end: End) -> str:
    if "no_room" in end.note:
        return str(end.note["no_room"])
    kept = "nothing was saved yet"
    if end.saved is not None:
        kept = f"step {end.saved} is saved, lorica train {end.note['folder']}/recipe.yaml --resume goes on from there"
    return f"{_what(end)}; {kept}; {WHAT_FITS}"


def _what(end: End) -> str:
    if "no_room" in end.note:
        return str(end.note["no_room"]).partition(";")[0]
    tokens = end.note.get("tokens")
    many = f", with {tokens:,} tokens at a time at most" if tokens else ""
    return f"{end.note.get('folder', 'the run')}: ended by {end.how}, as happens where memory runs out{many}"


def _saved(note: Mapping[str, Any]) -> int | None:
    """The step of the newest checkpoint; whole, since it has its name."""
    found = Path(note.get("folder", "")).glob("checkpoints/step-*") if "folder" in note else ()
    steps = [path.name.removeprefix("step-") for path in found]
    return max((int(step) for step in steps if step.isdigit()), default=None)


def _kills() -> int | None:
    """Processes that the system has killed for memory."""
    try:
        words = Path("/proc/vmstat").read_text().split()
        return int(words[words.index("oom_kill") + 1])
    except (OSError, ValueError):
        return None


def _ended_by(number: int) -> int:
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return 128 + number
