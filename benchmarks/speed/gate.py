"""The gate a side stands at between its turns: blocked on its input, its freed memory given back to the machine.

parent -> side   {"steps": 3}                       take three steps; an empty line or the end of input: go home
side -> parent   {"ready": {...}}                   once, before the first turn
                 {"steps": [{seconds, processor, loss, tokens}, ...], "peak_bytes": ...}
"""

import ctypes
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO


class Home(Exception):
    """No more steps are wanted."""


class Gate:
    """A side calls `passed` after each step it has taken; the call returns when the next one may begin."""

    def __init__(self, orders: TextIO, answers: TextIO) -> None:
        self.orders, self.answers = orders, answers
        self._left, self._taken = 0, list[dict[str, Any]]()
        self._began = self._processor = 0.0

    def order(self) -> dict[str, Any]:
        line = self.orders.readline()
        if not line.strip():
            raise Home
        return json.loads(line)

    def tell(self, answer: dict[str, Any]) -> None:
        self.answers.write(json.dumps(answer) + "\n")
        self.answers.flush()

    def ready(self, **facts: Any) -> None:
        """Said once, when all is loaded; returns when the first step may begin."""
        self.tell({"ready": {**facts, "resident_bytes": memory("VmRSS")}})
        self._wait()

    def passed(self, *, loss: float | None, tokens: int, **more: Any) -> None:
        seconds, processor = time.perf_counter() - self._began, time.process_time() - self._processor
        self._taken.append({"seconds": seconds, "processor": processor, "loss": loss, "tokens": tokens, **more})
        self._left -= 1
        if self._left == 0:
            self.tell({"steps": self._taken, "peak_bytes": memory("VmHWM"), "device_bytes": device_peak()})
            self._wait()
        self._clock()

    def _wait(self) -> None:
        give_back()
        wanted = self.order()
        if wanted.get("forget_peak"):
            forget_peak()
        self._left, self._taken = wanted["steps"], []
        self._clock()

    def _clock(self) -> None:
        self._began, self._processor = time.perf_counter(), time.process_time()


def memory(what: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at its highest."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(what)), 0)


def forget_peak() -> None:
    """VmHWM counts from here: Linux, proc(5), clear_refs."""
    Path("/proc/self/clear_refs").write_text("5")
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def device_peak() -> int | None:
    torch = sys.modules.get("torch")
    return torch.cuda.max_memory_allocated() if torch is not None and torch.cuda.is_available() else None


def give_back() -> None:
    """What the allocator holds and nobody uses, so that sides that wait leave the memory to the one that runs."""
    import gc

    gc.collect()
    if os.name == "posix" and sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
