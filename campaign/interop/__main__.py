"""The matrix and its controls: `python -m campaign.interop [--minutes N] [words]`.

With words, only the cases whose names hold one, and nothing is written.  With minutes, the cases in a drawn order until
the time is up.  Writes `benchmarks/results/interop.json`; exit status 1 where a case is wrong or a control stays green.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from campaign.interop.cases import Case, cases
from campaign.interop.controls import CONTROLS, Control
from campaign.interop.judge import Verdict, judged

RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "interop.json"


def main(arguments: Sequence[str]) -> int:
    asked = argparse.ArgumentParser(prog="campaign.interop")
    asked.add_argument("words", nargs="*")
    asked.add_argument("--minutes", type=float, default=float("inf"))
    given = asked.parse_args(arguments)
    started = time.monotonic()
    chosen = [case for case in cases() if not given.words or any(word in case.name for word in given.words)]
    if given.minutes < float("inf"):
        random.Random(0).shuffle(chosen)
    with tempfile.TemporaryDirectory() as folder:
        bases = Path(folder)
        controls = {} if given.words else {control.name: red(control, bases) for control in CONTROLS}
        until = started + 60 * given.minutes
        verdicts = [verdict for case in shown(chosen, "cases", until) for verdict in told(one(case, bases))]
    green = [name for name, counts in controls.items() if not counts["red"]]
    seconds = round(time.monotonic() - started)
    result = {"adapters_in_the_matrix": len(chosen), **summary(verdicts), "controls": controls, "seconds": seconds}
    if not given.words:
        RESULT.write_text(json.dumps({**result, "machine": machine()}, indent=2, ensure_ascii=False) + "\n")
    print(json.dumps({key: result[key] for key in SHOWN}, indent=2, ensure_ascii=False))
    print("controls that stay green:", ", ".join(green) or "none")
    return 1 if result["wrong"] or green else 0


SHOWN = (
    "adapters_in_the_matrix",
    "adapters",
    "outcomes",
    "largest_error_of_bound",
    "smallest_move",
    "wrong",
    "seconds",
)


def told(verdicts: Sequence[Verdict]) -> Sequence[Verdict]:
    for verdict in verdicts:
        if verdict.faults:
            print(f"\nwrong: {verdict.case.name}, {verdict.way}: {'; '.join(verdict.faults)}", file=sys.stderr)
    return verdicts


def one(case: Case, bases: Path) -> tuple[Verdict, ...]:
    with tempfile.TemporaryDirectory() as work:
        return judged(case, bases, Path(work))


def red(control: Control, bases: Path) -> dict[str, int]:
    """How many of the cases that use the broken part turn red."""
    chosen = control.cases()
    with control.broken():
        seen = [any(v.outcome == "wrong" for v in one(case, bases)) for case in shown(chosen, control.name)]
    return {"cases": len(seen), "red": sum(seen)}


def shown(chosen: Sequence[Case], name: str, until: float = float("inf")) -> Iterator[Case]:
    """The cases, with a line on stderr that says how far they are and how long the rest will take."""
    started = time.monotonic()
    for number, case in enumerate(chosen):
        if time.monotonic() > until:
            break
        rest = (time.monotonic() - started) / number * (len(chosen) - number) if number else 0
        print(f"\r{name} {number + 1}/{len(chosen)}, {rest:.0f} s left: {case.name:60.60}", end="", file=sys.stderr)
        yield case
    print(file=sys.stderr)


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
