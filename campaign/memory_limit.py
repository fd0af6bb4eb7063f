"""`lorica train` under limits of its memory, from far too little to enough: `python -m campaign.memory_limit`.

    python -m campaign.memory_limit              the whole, going on where it was stopped; writes the result
    python -m campaign.memory_limit --sample     three limits of a shorter run, as JSON on stdout

Whatever the limit, the command ends in one of two ways.  It is done, and every step of the adapter is that of the run
without a limit but for rounding.  Or its exit status is 1, it said why in one line, and every checkpoint that is there
verifies; given room, it then goes on to the same end.

    address space    allocations fail, wherever they are made (RLIMIT_AS)
    control group    the kernel kills the process that holds most, where control groups may be made
"""

import json
import math
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import machine
from campaign import trees
from campaign.broken_train import BROKEN
from campaign.ledger import ROOT, Ledger, Tally, say, source_stamp
from lorica.adapter.file import read
from lorica.train import checkpoint

RESULT = ROOT / "benchmarks/results/memory_limit.json"
PROGRESS = ROOT / "runs/memory_limit.json"
MEBIBYTE = 1 << 20
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "import", "torch", "return", "self", "value")
RECIPE = """\
model: {{source: embedded, dtype: {dtype}}}
method: {{name: lora, r: 8, alpha: 12, dropout: 0.1}}
data: {{train: train.jsonl, eval: eval.jsonl}}
train: {{steps: {steps}, rows_per_step: {rows}, learning_rate: 1.0, optimizer: {{name: sgd}},
         gradient_checkpointing: false, evaluate_every: 2, checkpoint_every: 1, keep_checkpoints: 9}}
output: run
"""
SITES = 42


@dataclass(frozen=True)
class Ended:
    """status: below 0 a signal; said: on stderr; seconds of the clock."""

    status: int
    said: str
    seconds: float

    @property
    def processes(self) -> int:
        return 1 + self.said.count("; going on from ")

    @property
    def native_deaths(self) -> int:
        """Processes that ended without a word of their own."""
        return self.said.count(": ended by ")

    @property
    def cuts(self) -> int:
        return len(re.findall(r"; going on (from|with) ", self.said))


@dataclass
class Workplace:
    """A folder with rows and a recipe, in which each case is a folder of its own."""

    place: Path
    dtype: str = "bfloat16"
    steps: int = 2
    rows: int = 4
    words: tuple[int, int] = (100, 250)
    environment: Mapping[str, str] = field(
        default_factory=lambda: {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    )

    def __post_init__(self) -> None:
        self.place.mkdir(parents=True)
        chance = random.Random(0)
        for name, count in (("train", self.rows * self.steps), ("eval", self.rows)):
            texts = [" ".join(chance.choices(WORDS, k=chance.randint(*self.words))) for _ in range(count)]
            (self.place / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        recipe = RECIPE.format(dtype=self.dtype, steps=self.steps, rows=self.rows)
        (self.place / "recipe.yaml").write_text(recipe)

    def train(
        self, case: Path, *words: str, limited: Callable[[], None] | None = None, start: Sequence[str] = ("lorica",)
    ) -> Ended:
        """The command as a person starts it; `limited` is called in its process before it begins."""
        case.mkdir(exist_ok=True)
        for name in ("train.jsonl", "eval.jsonl", "recipe.yaml"):
            if not (case / name).exists():
                (case / name).symlink_to(self.place / name)
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", *start, "train", "recipe.yaml", *words],
            cwd=case,
            env=dict(self.environment),
            preexec_fn=limited,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        return Ended(done.returncode, done.stderr, time.monotonic() - began)

    @cached_property
    def peaks(self) -> tuple[int, int]:
        """The most address space and memory that one process takes for the run without a limit, in bytes."""
        end = self.train(self.place / "whole", start=("campaign.memory_limit", "--peaks"))
        found = re.search(r"peaks: (\d+) (\d+)", end.said)
        if end.status or found is None:
            raise RuntimeError(end.said)
        return int(found[1]), int(found[2])

    @cached_property
    def whole(self) -> list[dict[str, Tensor]]:
        """The adapter at every checkpoint of that run."""
        _ = self.peaks
        return steps_of(self.place / "whole/run")

    def wrong(self, case: Path, end: Ended) -> list[str]:
        """What of an end is not as it must be; a run that stopped is gone on with, without a limit."""
        run = case / "run"
        found = damaged(run)
        if found or end.status == 0:
            return found or self.differences(run)
        lines = [line for line in end.said.splitlines() if line.startswith("error: ")]
        # what ends without a word of its own, as Python does where it cannot even print, may print anything
        traceback = "Traceback" in end.said and not end.native_deaths
        if end.status != 1 or len(lines) != 1 or traceback or "unexpected" in lines[0]:
            found.append(f"exit status {end.status} and {lines}: {end.said[-300:]}")
        if (run / "adapter").exists():
            found.append("an adapter of a run that did not end")
        if not checkpoint.folders(run / "checkpoints"):
            return found
        again = self.train(case, "--resume")
        if again.status:
            return [*found, f"it does not go on: {again.said[-300:]}"]
        return found + [f"gone on with, {wrong}" for wrong in self.differences(run)]

    def differences(self, run: Path) -> list[str]:
        """Of each step's change to the adapter, beside the run without a limit."""
        found = steps_of(run)
        if len(found) != self.steps or not (run / "adapter").is_dir():
            return [f"{len(found)} of {self.steps} checkpoints, adapter: {(run / 'adapter').is_dir()}"]
        wrong = [] if _equal(found[-1], read(run / "adapter").tensors) else ["the adapter is not the last step's"]
        for step, far in enumerate(self.far(found), start=1):
            if far > self.tolerance * math.sqrt(step):
                wrong.append(f"step {step} is {far:.2g} of its length away")
        return wrong

    def far(self, found: Sequence[Mapping[str, Tensor]]) -> list[float]:
        """|change - change of the whole run| / |change of the whole run|, of each step, over all tensors."""
        return [
            _length(_less(mine, theirs)) / _length(theirs)
            for mine, theirs in zip(_changes(found), _changes(self.whole), strict=True)
        ]

    @property
    def tolerance(self) -> float:
        """Rounding of the products of both passes, one after another: independent errors add up as their root does."""
        return torch.finfo(getattr(torch, self.dtype)).eps * math.sqrt(2 * SITES)


def steps_of(run: Path) -> list[dict[str, Tensor]]:
    return [dict(checkpoint.load(folder).tensors["adapter"]) for folder in checkpoint.folders(run / "checkpoints")]


def damaged(run: Path) -> list[str]:
    found = checkpoint.folders(run / "checkpoints") if run.exists() else []
    return [f"{folder.name} does not verify" for folder in found if not checkpoint.verifies(folder)]


def _changes(steps: Sequence[Mapping[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Of B at the first step, which begins at zero and whose A has no gradient yet, and of both from then on."""
    yield {key: tensor for key, tensor in steps[0].items() if "lora_B" in key}
    for before, after in pairwise(steps):
        yield _less(after, before)


def _less(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.double() - right[key].double() for key, tensor in left.items()}


def _length(tensors: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors.values()))


def _equal(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(tensor, right[key]) for key, tensor in left.items())


# The limits


def address_space(limit: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


@contextmanager
def control_group(limit: int) -> Iterator[Callable[[], None]]:
    """A group that holds `limit` bytes; OSError where none can be made."""
    old = Path("/sys/fs/cgroup/memory")
    group = (old if old.is_dir() else Path("/sys/fs/cgroup")) / f"lorica-{os.getpid()}"
    names = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes") if old.is_dir() else ("memory.max",)
    group.mkdir()
    try:
        for name in names:
            (group / name).write_text(str(limit))
        yield lambda: (group / "cgroup.procs").write_text(str(os.getpid())) and None
    finally:
        group.rmdir()


@dataclass(frozen=True, kw_only=True)
class Series:
    """`count` limits: a sixth of them evenly up to `floor` of the peak, the rest from there to `top` of it."""

    name: str
    dtype: str
    count: int
    grouped: bool
    floor: float
    top: float

    def limits(self, workplace: Workplace) -> list[int]:
        peak = workplace.peaks[1 if self.grouped else 0]
        low = self.count // 6
        shares = [self.floor * (n + 1) / (low + 1) for n in range(low)]
        rest = self.count - low
        shares += [self.floor + (self.top - self.floor) * n / (rest - 1) for n in range(rest)]
        return [int(share * peak) // MEBIBYTE * MEBIBYTE for share in shares]


SERIES = (
    Series(name="address space", dtype="bfloat16", count=30, grouped=False, floor=0.55, top=1.03),
    Series(name="address space, float32", dtype="float32", count=6, grouped=False, floor=0.7, top=1.03),
    Series(name="control group", dtype="bfloat16", count=6, grouped=True, floor=0.6, top=1.03),
)


def tried(
    workplace: Workplace, case: Path, limit: int, grouped: bool = False, start: Sequence[str] = ("lorica",)
) -> Tally:
    """One limit."""
    tally = Tally()
    try:
        with control_group(limit) if grouped else nullcontext(address_space(limit)) as limited:
            end = workplace.train(case, limited=limited, start=start)
    except OSError as error:
        tally.refused = f"no control group can be made here: {error.strerror}"
        return tally
    tally.cases = 1
    done = "done" if end.status == 0 else "stopped"
    if end.status == 0 and end.cuts:
        done = "done in smaller micro-batches"
    tally.count(done)
    for name, number in (
        ("mib", limit // MEBIBYTE),
        ("processes", end.processes),
        ("native_deaths", end.native_deaths),
    ):
        tally.count(name, number)
    tally.failures = [f"{limit // MEBIBYTE} MiB: {wrong}" for wrong in workplace.wrong(case, end)]
    trees.erase(case)
    return tally


# Controls


def controlled(workplace: Workplace, case: Path, name: str, limit: int) -> Tally:
    return tried(workplace, case, limit, start=("campaign.broken_train", name))


# The whole


def main(words: list[str]) -> int:
    if words[:1] == ["--peaks"]:
        return _peaks(words[1:])
    with tempfile.TemporaryDirectory(prefix="lorica-limits-") as place:
        return _sample(Path(place)) if words == ["--sample"] else _all(Path(place))


def _peaks(words: Sequence[str]) -> int:
    from lorica.cli.entry import run

    status = run(words)
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    say(f"peaks: {int(sizes['VmPeak'][0]) * 1024} {int(sizes['VmHWM'][0]) * 1024}")
    return status


def _sample(place: Path) -> int:
    """Too little for the libraries, too little for the base, and enough; the first with its control."""
    workplace = Workplace(place / "work", rows=3, words=(80, 120))
    peak = workplace.peaks[0]
    found = {str(share): tried(workplace, place / str(share), int(share * peak)) for share in (0.3, 0.7, 1.1)}
    (name,) = [name for name in BROKEN if "exit status" in name]
    control = controlled(workplace, place / "control", name, int(0.3 * peak))
    shown = {share: vars(tally) for share, tally in found.items()}
    print(json.dumps({"limits": shown, "control": vars(control)}))
    return int(any(tally.failures for tally in found.values()) or not control.failures)


def _all(place: Path) -> int:
    ledger = Ledger(PROGRESS, source_stamp())
    workplaces = {dtype: Workplace(place / dtype, dtype=dtype) for dtype in ("bfloat16", "float32")}
    parts = {series.name: _swept(ledger, series, workplaces[series.dtype], place / "case") for series in SERIES}
    controls = _controls(ledger, parts, workplaces["bfloat16"], place / "case")
    result = {
        "machine": machine(),
        "seconds": round(sum(entry["seconds"] for entry in ledger.entries.values() if isinstance(entry, dict))),
        "limits": sum(part["cases"] for part in parts.values()),
        "failures": sum(len(part["failures"]) for part in parts.values()),
        "controls": controls,
        "parts": parts,
    }
    RESULT.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    say(f"{result['limits']} limits, {result['failures']} failures, controls red: {controls}; {RESULT}")
    return int(result["failures"] > 0 or not all(controls.values()))


def _swept(ledger: Ledger, series: Series, workplace: Workplace, case: Path) -> dict[str, Any]:
    rows, failures, why = [], [], None
    for number, limit in enumerate(series.limits(workplace)):
        key = f"{series.name} {number}"
        tally = ledger.get(key)
        if tally is None:
            began = time.monotonic()
            tally = tried(workplace, case, limit, series.grouped)
            ledger.put(key, tally, time.monotonic() - began)
        say(f"{series.name}, {limit // MEBIBYTE} MiB: {tally.counts} {tally.failures or tally.refused or ''}")
        why = why or tally.refused
        failures += tally.failures
        if tally.cases:
            end, *numbers = tally.counts
            rows.append({"end": end, **{name: tally.counts[name] for name in numbers}})
    ends = {end: sum(row["end"] == end for row in rows) for end in dict.fromkeys(row["end"] for row in rows)}
    refused = {"not_tried": why} if why else {}
    head = {"dtype": series.dtype, "tolerance": workplace.tolerance, **refused}
    deaths = sum(row["native_deaths"] for row in rows)
    return {**head, "cases": len(rows), **ends, "native_deaths": deaths, "failures": failures, "limits": rows}


def _controls(ledger: Ledger, parts: Mapping[str, Any], workplace: Workplace, case: Path) -> dict[str, bool]:
    """On the least limit of all where one is to be stopped by it, otherwise on the largest."""
    least, *_, most = parts[SERIES[0].name]["limits"]
    found = {}
    for name in BROKEN:
        key = f"control: {name}"
        if ledger.get(key) is None:
            row = least if "status" in name else most
            ledger.put(key, controlled(workplace, case, name, row["mib"] * MEBIBYTE), 0.0)
        found[name] = bool((ledger.get(key) or Tally()).failures)
        say(f"{key}: {'red' if found[name] else 'NOT FOUND'}")
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
