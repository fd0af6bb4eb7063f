"""Ctrl-C and SIGTERM as a wish: the first lets the current step finish, the second ends the process at once.

A signal that the process was started to ignore, as a shell starts what runs in the background, stays ignored.
"""

import signal
import threading
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """`with Interruption() as wish: ... if wish.made: ...`; outside the main thread, where none arrive, never made."""

    def __init__(self) -> None:
        self.made: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._arrived) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        self.made = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before = {}
