"""The log: one JSON object a line.  Prompts, answers and keys are never given to it."""

import json
import logging
import threading
import time
from typing import Any, TextIO

NOT_OURS = ("uvicorn.error",)
"""Loggers of the libraries below whose warnings belong in the log."""


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


class IntoLog(logging.Handler):
    """What libraries say, as lines of the log: the message, never the values of an exception."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self.log = log

    def emit(self, record: logging.LogRecord) -> None:
        kind = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else None
        self.log.write("library", logger=record.name, said=str(record.msg)[:200], type=kind)


def taken_over(log: Log) -> None:
    """The libraries' warnings go to the log, and nowhere else, for the rest of this process."""
    for name in NOT_OURS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [IntoLog(log)], False
