"""The supervised process: a short note to its supervisor, written anew each time and read once the process has ended.

    folder            where the run is
    tokens, smaller   computed at a time, and what there would be next (None: nothing is smaller)
    no_room           the line of the error, where memory ran out and nothing else was said
    status            how the command ended

Native code that ends the process leaves no status.
"""

import ctypes
import json
import os
import signal
import sys
from dataclasses import dataclass, field
from typing import Any

from lorica.errors import is_out_of_memory

SUPERVISED = "LORICA_SUPERVISED"
"""The environment's entry: the supervisor's process, two descriptors, and tokens at a time or 0, with colons."""
DIE_WITH_PARENT = 1


@dataclass
class Note:
    """Of a process without a supervisor: nothing is written, and there is nobody to leave an error to."""

    descriptor: int | None = None
    tokens: int = 0
    said: dict[str, Any] = field(default_factory=dict)

    def tell(self, **said: Any) -> None:
        self.said |= said
        if self.descriptor is not None:
            os.pwrite(self.descriptor, f"{json.dumps(self.said)}\n".encode(), 0)

    def leave(self, line: str) -> bool:
        """Whether the supervisor will say that memory ran out, or go on without saying so."""
        self.tell(no_room=line)
        return self.descriptor is not None


def read(descriptor: int) -> dict[str, Any]:
    """The note as it was last written; nothing where none was, or not whole."""
    try:
        return json.loads(os.pread(descriptor, 1 << 16, 0).partition(b"\n")[0])
    except ValueError:
        return {}


def note_of_this_process() -> Note | None:
    """Where a supervisor started it: it then ends when the supervisor does, and tells which signals it has heard."""
    entry = os.environ.pop(SUPERVISED, "")
    if not entry:
        return None
    parent, note, heard, tokens = map(int, entry.split(":"))
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    signal.set_wakeup_fd(heard, warn_on_full_buffer=False)
    if not os.environ.get("LORICA_TRACEBACK"):
        _say_nothing_of_memory()
    return Note(note, tokens)


def _say_nothing_of_memory() -> None:
    """Python tells what it could not clean up or raise for want of memory; that is the supervisor's to say."""
    excepted, ignored = sys.excepthook, sys.unraisablehook
    sys.excepthook = lambda kind, error, trace: None if is_out_of_memory(error) else excepted(kind, error, trace)
    sys.unraisablehook = lambda told: None if issubclass(told.exc_type, MemoryError) else ignored(told)
