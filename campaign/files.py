"""Damaged adapter files and malformed data files, all of them: python -m campaign.files

    every bit flipped, every length, every swap, a million mutants, giants -> benchmarks/results/adapter_damage.json
    300 malformed data files                                               -> benchmarks/results/data_damage.json

It says how far it is, and goes on from there when it is started again.  Each guard is then taken out in turn, and the
campaign must notice: a run in which a control stays green fails as much as one with accepted damage.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.machine import machine
from campaign import rows
from campaign.adapters import MANIFEST, Case, cuts, flips, giants, mutant, specimen, swaps
from campaign.judge import Judge, Tally
from campaign.reading import verdict
from lorica import durable
from lorica.adapter import file as adapter_file
from lorica.adapter import tensors as stored

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
PROGRESS = ROOT / "build/campaign"
CHUNK = 5000
GIANT_LIMIT = 20.0
EXHAUSTIVE = ("flip", "cut", "longer", "swap", "giant")
DATA_FILES = 300

PROMISE = {
    "with lorica.json": "the tensors and settings that were saved, to the bit, or AdapterError",
    "without": (
        "AdapterError, or every tensor as safetensors reads it: finite, each asked for by the config and the base, "
        "none beside; a changed value that is still a number cannot be seen, since nothing records what it was"
    ),
}

Cases = Callable[[], Iterator[Case]]


def alien(name: str) -> dict[str, bytes]:
    """A specimen as another tool would have written it."""
    return {file: data for file, data in specimen(name).items() if file != MANIFEST}


def exhaustive() -> Iterator[Case]:
    """Every bit, every length, every swap; with and without lorica.json."""
    for name in ("lora", "full"):
        yield from chain(flips(specimen(name)), cuts(specimen(name)))
    for case in chain(flips(alien("lora")), cuts(alien("lora"))):
        yield Case(f"{case.what} without lorica.json", case.contents)
    yield from swaps()


def cases(seed: int, start: int, stop: int, exhausted: int) -> Iterator[Case]:
    """Cases [start, stop): the exhaustive ones come first, then the mutants."""
    yield from islice(exhaustive(), start, stop)
    yield from (mutant(seed, number - exhausted) for number in range(max(start, exhausted), stop))


def chunk(given: tuple[int, int, int, int]) -> tuple[int, Tally, int]:
    """One worker's share: where it begins, what happened, and how far memory rose."""
    judge, tally, memory = Judge(), Tally(), Memory()
    for case in cases(*given):
        judge(case, tally)
    return given[1], tally, memory.grown


def adapters(seed: int, mutants: int, workers: int) -> dict[str, Any]:
    """The whole campaign on adapters; the result as it is written down."""
    exhausted = sum(1 for _ in exhaustive())
    total = exhausted + mutants
    progress = Progress("adapter_damage", {"seed": seed, "mutants": mutants, "code": code()}, total)
    left = [start for start in range(0, total, CHUNK) if start not in progress.done]
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        shares = [(seed, start, min(start + CHUNK, total), exhausted) for start in left]
        for start, tally, grown in pool.imap_unordered(chunk, shares):
            progress.add(start, tally, grown)
    judge, tally = Judge(), progress.tally
    large = [_giant(judge, giant.what, giant.make(), tally) for giant in giants()]
    return {
        "promise": PROMISE,
        "seed": seed,
        "adapter_bytes": {file: len(data) for file, data in specimen("lora").items()},
        **summary(tally),
        "peak_growth_bytes": progress.grown,
        "giants": large,
        "controls": adapter_controls(judge),
    }


def _giant(judge: Judge, what: str, contents: Mapping[str, bytes], tally: Tally) -> dict[str, Any]:
    size, memory, started = sum(map(len, contents.values())), Memory(), time.process_time()
    said = judge(Case("giant", contents), tally, limit=GIANT_LIMIT)
    seconds = round(time.process_time() - started, 2)
    return {"what": what, "verdict": said, "bytes": size, "peak_growth_bytes": memory.grown, "seconds": seconds}


def summary(tally: Tally) -> dict[str, Any]:
    """0 failures in n cases bound the rate below 3/n with 95 % confidence (the rule of three)."""
    tried = tally.counts.items()
    random = sum(sum(kind.values()) for what, kind in tried if not what.startswith(EXHAUSTIVE))
    return {
        "cases": tally.total,
        "random_cases": random,
        "failed": tally.failed,
        "failures": tally.failures,
        "upper_bound_of_failure_rate_of_random_cases": 3 / random if random and not tally.failed else None,
        "slowest_seconds": round(tally.slowest, 3),
        "verdicts": tally.counts,
    }


@contextmanager
def without(*guards: tuple[Any, str, Any]) -> Iterator[None]:
    """Inside, these functions do not do what they are for."""
    with ExitStack() as stack:
        for place, name, instead in guards:
            stack.enter_context(patch.object(place, name, instead))
        yield


def _mutants(kind: str) -> Iterator[Case]:
    cases = (mutant(1, number) for number in range(20_000))
    return (case for case in cases if case.what == kind)


CONTROLS: Mapping[str, tuple[tuple[tuple[Any, str, Any], ...], Cases]] = {
    "hashes are not compared": (
        ((adapter_file, "_difference", lambda *_: ""),),
        lambda: flips(specimen("lora")),
    ),
    "values may be NaN": (
        ((stored, "finite", lambda _: True),),
        lambda: _mutants("payload"),
    ),
    "tensors may lie anywhere": (
        ((stored, "_require_end_to_end", lambda *_: None),),
        lambda: _mutants("header"),
    ),
    "a shape may say anything": (
        ((stored, "fits", lambda *_: True),),
        lambda: _mutants("header"),
    ),
}


def adapter_controls(judge: Judge) -> dict[str, dict[str, Any]]:
    """How many cases it takes until the missing guard is noticed."""
    told = {}
    for name, (guards, cases) in CONTROLS.items():
        tally = Tally()
        with without(*guards):
            for case in cases():
                judge(case, tally)
                if tally.failed:
                    break
        told[name] = {"red": bool(tally.failed), "cases": tally.total, "first": tally.failures[:1]}
    return told


def data_files(seed: int) -> dict[str, Any]:
    """300 malformed files; the controls are readers that guess, cut or lose."""
    counts: dict[str, dict[str, int]] = {}
    failures = []
    memory = Memory()
    for number in range(DATA_FILES):
        name, said = read_case(seed, number)
        word = "failed" if said.startswith("FAILED") else said
        kind = counts.setdefault(name, {})
        kind[word] = kind.get(word, 0) + 1
        failures += [f"{number} {name}: {said}"] if word == "failed" else []
    return {
        "promise": "read = used + dropped, each drop with place and reason, or one error with file, line and field",
        "seed": seed,
        "files": DATA_FILES,
        "failed": len(failures),
        "failures": failures,
        "read": sum(kind.get("read", 0) for kind in counts.values()),
        "refused": sum(kind.get("refused", 0) for kind in counts.values()),
        "peak_growth_bytes": memory.grown,
        "verdicts": counts,
        "controls": data_controls(seed),
    }


def read_case(seed: int, number: int) -> tuple[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        name, planted = rows.planted(seed, number, Path(folder))
        return name, verdict(planted)


def data_controls(seed: int) -> dict[str, dict[str, Any]]:
    """Readers as one finds them: invalid bytes replaced, the last of two keys taken, empty rows kept."""
    from lorica.data import lessons, reading

    guessed = (reading, "decoded", lambda raw, *_, **__: raw.decode("utf-8-sig", "replace"))
    permissive = (reading, "parse", json.loads)
    silent = (lessons, "says_nothing", lambda _: None)
    told = {}
    for name, guard in {
        "bytes are guessed": guessed,
        "any JSON goes": permissive,
        "nothing is dropped": silent,
    }.items():
        with without(guard):
            red = next((n for n in range(DATA_FILES) if read_case(seed, n)[1].startswith("FAILED")), None)
        told[name] = {"red": red is not None, "cases": DATA_FILES if red is None else red + 1}
    return told


class Memory:
    """How far the peak of this process has risen since it was made, in bytes (Linux)."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        self.begin = self._peak()

    @property
    def grown(self) -> int:
        return self._peak() - self.begin

    @staticmethod
    def _peak() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


class Progress:
    """What is done, kept in build/ after every chunk; another seed, size or code begins anew."""

    def __init__(self, name: str, key: Mapping[str, Any], total: int) -> None:
        self.path, self.key, self.total = PROGRESS / f"{name}.json", dict(key), total
        self.done: list[int] = []
        self.grown, self.tally, self._begun = 0, Tally(), time.monotonic()
        if self.path.exists() and (kept := durable.read_json(self.path))["key"] == self.key:
            self.done, self.grown, self.tally = kept["done"], kept["grown"], Tally(**kept["tally"])
        self._before = self.tally.total

    def add(self, start: int, tally: Tally, grown: int) -> None:
        self.done.append(start)
        self.tally.join(tally)
        self.grown = max(self.grown, grown)
        kept = {"key": self.key, "done": self.done, "grown": self.grown, "tally": asdict(self.tally)}
        durable.write_json(self.path, kept)
        pace = (time.monotonic() - self._begun) / (self.tally.total - self._before)
        left = pace * (self.total - self.tally.total) / 60
        say(f"{self.tally.total:,} of {self.total:,}, {self.tally.failed} failed, {left:.0f} minutes left")


def code() -> str:
    """A digest of what is tried and of what tries it."""
    folders = ("src/lorica/adapter", "src/lorica/methods", "src/lorica/kernels")
    names = ("src/lorica/errors.py", "src/lorica/durable.py", "campaign/adapters.py", "campaign/judge.py")
    files = [*(path for folder in folders for path in (ROOT / folder).glob("*.py")), *(ROOT / name for name in names)]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in sorted(files))).hexdigest()


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def report(name: str, result: dict[str, Any]) -> bool:
    durable.write_json(RESULTS / f"{name}.json", {**result, "machine": machine()})
    green = [control for control, told in result["controls"].items() if not told["red"]]
    say(f"{name}: {result['failed']} failed" + (f"; these controls stayed green: {', '.join(green)}" if green else ""))
    return not result["failed"] and not green


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--mutants", type=int, default=1_000_000)
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--only", choices=("adapters", "data"))
    words.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    given = words.parse_args()
    good = given.only == "adapters" or report("data_damage", data_files(given.seed))
    good &= given.only == "data" or report("adapter_damage", adapters(given.seed, given.mutants, given.workers))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
