"""The matrix and its controls: `python -m campaign.interop [--minutes N] [words]`.

With words, only the cases whose names hold one, and nothing is written.  With minutes, the cases in a drawn order until
the time is up.  Writes `benchmarks/results/interop.json`; exit status 1 where a case is wrong or a control stays green.
"""

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from campaign.interop.cases import Case, cases
from campaign.interop.controls import CONTROLS, Control
from campaign.interop.judge import Verdict, judged

RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "interop.json"
SHOWN = (
    "adapters_in_the_matrix",
    "adapters",
    "outcomes",
    "largest_error_of_bound",
    "smallest_move",
    "wrong",
    "seconds",
)
ENDLESS = float("inf")


def main(arguments: Sequence[str]) -> int:
    asked = argparse.ArgumentParser(prog="campaign.interop")
    asked.add_argument("words", nargs="*")
    asked.add_argument("--minutes", type=float, default=ENDLESS)
    asked.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    given = asked.parse_args(arguments)
    started = time.monotonic()
    chosen = [case for case in cases() if not given.words or any(word in case.name for word in given.words)]
    if given.minutes < ENDLESS:
        random.Random(0).shuffle(chosen)
    judged_ones = judgements([(None, case) for case in chosen], given.workers, started + 60 * given.minutes)
    places = {case.name: place for place, case in enumerate(chosen)}
    verdicts = sorted(judged_ones, key=lambda verdict: places[verdict.case.name])
    controls = {} if given.words else seen(given.workers)
    green = [name for name, counts in controls.items() if not counts["red"]]
    seconds = round(time.monotonic() - started)
    result = {"adapters_in_the_matrix": len(chosen), **summary(verdicts), "controls": controls, "seconds": seconds}
    if not given.words:
        RESULT.write_text(json.dumps({**result, "machine": machine()}, indent=2, ensure_ascii=False) + "\n")
    print(json.dumps({key: result[key] for key in SHOWN}, indent=2, ensure_ascii=False))
    print("controls that stay green:", ", ".join(green) or "none")
    return 1 if result["wrong"] or green else 0


def seen(workers: int) -> dict[str, dict[str, int]]:
    """Of each control, how many of the cases that use the broken part turn red."""
    jobs = [(control, case) for control in CONTROLS for case in control.cases()]
    wrong = {(verdict.control, verdict.case.name) for verdict in judgements(jobs, workers) if verdict.faults}
    return {
        control.name: {
            "cases": len(control.cases()),
            "red": sum((control.name, case.name) in wrong for case in control.cases()),
        }
        for control in CONTROLS
    }


Job = tuple[Control | None, Case]


def judgements(jobs: Sequence[Job], workers: int, until: float = ENDLESS) -> Iterator[Verdict]:
    """The verdicts of all jobs, or of those done when the time is up, with a line on stderr that says how far they
    are.  Workers are forks, so that the libraries are imported once, and each keeps bases of its own."""
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as bases,
        multiprocessing.get_context("fork").Pool(workers, initializer=_prepare, initargs=(jobs, bases)) as pool,
    ):
        for number, (index, verdicts) in enumerate(pool.imap_unordered(_judge, range(len(jobs))), 1):
            control, case = jobs[index]
            rest = (time.monotonic() - started) / number * (len(jobs) - number)
            print(f"\r{number}/{len(jobs)}, {rest:.0f} s left: {case.name:60.60}", end="", file=sys.stderr)
            for verdict in (replace(verdict, case=case) for verdict in verdicts):
                if verdict.faults and control is None:
                    print(f"\nwrong: {case.name}, {verdict.way}: {'; '.join(verdict.faults)}", file=sys.stderr)
                yield verdict
            if time.monotonic() > until:
                break
    print(file=sys.stderr)


JOBS: list[Any] = []
"""Of a worker: the jobs, which hold functions and are inherited rather than sent, and the folder of bases."""


def _prepare(jobs: Sequence[Job], bases: str) -> None:
    JOBS[:] = [jobs, Path(bases) / str(os.getpid())]
    JOBS[1].mkdir()


def _judge(index: int) -> tuple[int, list[Verdict]]:
    jobs, bases = JOBS
    control, case = jobs[index]
    with tempfile.TemporaryDirectory() as work, control.broken() if control else nullcontext():
        try:
            verdicts = judged(case, bases, Path(work))
        except Exception as error:  # one case must not take the others with it
            verdicts = (Verdict(case=case, way="theirs -> here", faults=(f"{type(error).__name__}: {error}",)),)
    name = None if control is None else control.name
    return index, [replace(verdict, case=None, control=name) for verdict in verdicts]


def summary(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    compared = [v for v in verdicts if v.error is not None and v.bound is not None and v.moved is not None]
    return {
        "adapters": len({v.case.name for v in verdicts}),
        "loaded_and_equal": sum(v.way == "theirs -> here" and v.outcome == "equal" for v in verdicts),
        "outcomes": {
            way: counted(v.outcome for v in verdicts if v.way == way) for way in ("theirs -> here", "here -> theirs")
        },
        "largest_error_of_bound": round(max(v.error / v.bound for v in compared), 3),  # type: ignore[operator]
        "smallest_move": round(min(v.moved for v in compared), 3),  # type: ignore[type-var]
        "families": {name: table(verdicts, name, None) for name in {v.case.family.name: 0 for v in verdicts}},
        "options": {name: table(verdicts, None, name) for name in {v.case.option: 0 for v in verdicts}},
        "refusals": refusals(verdicts),
        "not_in_peft": {v.case.name: v.unmade for v in verdicts if v.unmade},
        "wrong": {f"{v.case.name}, {v.way}": v.faults for v in verdicts if v.faults},
    }


def table(verdicts: Sequence[Verdict], family: str | None, option: str | None) -> dict[str, int]:
    return counted(
        v.outcome for v in verdicts if family in (None, v.case.family.name) and option in (None, v.case.option)
    )


def counted(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def refusals(verdicts: Sequence[Verdict]) -> dict[str, dict[str, str]]:
    """One example of each: option -> direction -> the first line of the error."""
    found: dict[str, dict[str, str]] = {}
    for verdict in verdicts:
        if verdict.refusal is not None:
            lines = verdict.refusal.splitlines()
            more = f" (and {len(lines) - 1} more lines)" if len(lines) > 1 else ""
            found.setdefault(verdict.case.option, {}).setdefault(
                verdict.way, f"{verdict.case.family.name}: {lines[0]}{more}"
            )
    return found


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
