"""What was measured on this machine corrects its later forecasts: kept in the user's cache folder.

    context'     = context + difference             where a run held little beside the process itself
    in the step' = in the step x ratio              where it held much: the medians of the newest measurements

A measurement stands for the machine, versions, device, types and kind of base that it was taken with, and no others.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from lorica import durable
from lorica.budget.memory import Memory
from lorica.errors import RunError

IN_THE_STEP = ("activations", "logits", "buffers", "allocator")
"""Parts of a forecast that come and go together, so that they are measured as one."""
FORMAT = 1
NEWEST = 9
"""Measurements of one kind that count."""
KEPT = 500
MUCH = 300_000_000
"""Bytes in a step from which its part is measured to some percent: libraries that are loaded on the way take tens of
megabytes."""
SANE = (0.2, 5.0)
"""Ratios beyond are of something else than the forecast of a step."""

Key = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Correction:
    """Bytes to add to the context, a ratio for what comes and goes in a step, and the measured rate of steps (10^12
    operations a second); None: not measured.  `count` measurements."""

    count: int
    context: int | None = None
    step: float | None = None
    tflops: float | None = None

    def of(self, memory: Memory) -> Memory:
        ratio = 1.0 if self.step is None else self.step
        scaled = {name: int(ratio * getattr(memory, name)) for name in IN_THE_STEP}
        return replace(memory, context=max(memory.context + (self.context or 0), 0), **scaled)

    def __str__(self) -> str:
        said = []
        if self.step is not None:
            said.append(f"what comes and goes in a step x {self.step:.2f}")
        if self.context is not None:
            said.append(f"the process itself {self.context / 1e6:+.0f} MB")
        times = f"{self.count} measurement{'s' if self.count > 1 else ''}"
        return f"corrected by {times} on this machine: {', '.join(said) or 'nothing'}"


def path() -> Path:
    """corrections.json in LORICA_CACHE, or under `lorica` in the user's cache folder (XDG_CACHE_HOME, ~/.cache)."""
    own, shared = os.environ.get("LORICA_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own or Path(shared or Path.home() / ".cache") / "lorica") / "corrections.json"


def correction(key: Key, flops_per_token: int) -> tuple[Correction | None, str | None]:
    """What is known for a key, and a line where the file cannot be used.  Rates are of bases that are no more than
    twice as large, or half."""
    entries, note = _read()
    found = [entry for entry in entries if entry["key"] == dict(key)][-NEWEST:]
    if not found:
        return None, note
    alike = [entry for entry in found if 1 / 2 <= entry["flops"] / flops_per_token <= 2]
    known = {
        name: median(values)
        for name, among in (("context", found), ("step", found), ("tflops", alike))
        if (values := [entry[name] for entry in among if name in entry])
    }
    context = known.pop("context", None)
    return Correction(count=len(found), context=None if context is None else int(context), **known), note


def remember(key: Key, entry: Mapping[str, float]) -> Path:
    """Adds a measurement; what was in the file and cannot be used is left out."""
    entries, _ = _read()
    durable.write_json(path(), {"format": FORMAT, "measured": [*entries, {"key": dict(key), **entry}][-KEPT:]})
    return path()


def _read() -> tuple[list[dict[str, Any]], str | None]:
    file = path()
    if not file.is_file():
        return [], None
    try:
        value = durable.read_json(file)
    except RunError as error:
        return [], f"{error}; it is not used, and the next --measure writes a new one"
    if not isinstance(value, dict) or value.get("format") != FORMAT or not isinstance(value.get("measured"), list):
        return [], f"{file}: is no file of corrections of this version; it is not used"
    good = [entry for entry in value["measured"] if _sane(entry)]
    left = len(value["measured"]) - len(good)
    return good, f"{file}: {left} entries make no sense and are not used" if left else None


def _sane(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("key"), dict):
        return False
    numbers = {name: value for name, value in entry.items() if name != "key"}
    real = all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in numbers.values())
    return bool(
        real
        and numbers.get("flops", 0) > 0
        and SANE[0] <= numbers.get("step", 1.0) <= SANE[1]
        and abs(numbers.get("context", 0)) <= 1e10
        and numbers.get("tflops", 1.0) > 0
    )
