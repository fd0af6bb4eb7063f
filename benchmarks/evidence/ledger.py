"""Runs that are done, a line of JSON each, so that what was stopped goes on."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Ledger:
    path: Path
    done: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def at(cls, path: Path) -> "Ledger":
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text() if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:  # a line that was being written when the process was killed
            path.write_text(whole)
        entries = [json.loads(line) for line in whole.splitlines()]
        return cls(path, {entry["key"]: entry for entry in entries})

    def get(self, key: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What the run of this key came to, now or earlier."""
        if key not in self.done:
            self.done[key] = {"key": key, **run()}
            with self.path.open("a") as file:
                file.write(json.dumps(self.done[key]) + "\n")
        return self.done[key]
