"""The log: one JSON object a line.  Prompts, answers and keys are never given to it."""

import json
import logging
import threading
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

LOGGERS = ("uvicorn.error", "lorica.serve")
"""Of the rooms and libraries below, whose warnings belong in the log."""


class Log:
    """Lines to one stream; a line is whole whatever threads write."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._lock = threading.Lock()

    def write(self, event: str, **fields: Any) -> None:
        """Text of others is escaped to ASCII: it can neither begin a line nor move a cursor."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **fields}, default=str)
        with self._lock:
            try:
                self.stream.write(line + "\n")
                self.stream.flush()
            except (OSError, ValueError):
                return  # a full disk or a closed pipe stops no answer


def places_of(error: BaseException) -> list[str]:
    """Where it was raised, innermost last; not its words, which may quote a prompt."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    return [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]


class IntoLog(logging.Handler):
    """What they say, as lines of the log: the message without its values, which may quote a prompt, and where."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self.log = log

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        told = {} if error is None else {"type": type(error).__name__, "at": places_of(error)}
        self.log.write("warning", logger=record.name, said=str(record.msg)[:200], **told)


def taken_over(log: Log) -> None:
    """Their warnings go to the log, and nowhere else, for the rest of this process."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [IntoLog(log)], False
