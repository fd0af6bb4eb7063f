"""Where a command speaks: results on stdout (with --json nothing but the JSON), everything else on stderr."""

import json
import sys
from typing import Any, Protocol


class Result(Protocol):
    def to_dict(self) -> Any: ...


def show(result: Result, as_json: bool) -> None:
    """The result of a command: its text for people, or its `to_dict()` as JSON."""
    print(json_text(result.to_dict()) if as_json else result, flush=True)


def json_text(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=str)


def say(text: Any) -> None:
    """For people, while the work goes on."""
    print(text, file=sys.stderr, flush=True)


def complain(message: str) -> None:
    """Each problem on a line of its own."""
    for line in message.splitlines() or [""]:
        say(f"error: {line}")
