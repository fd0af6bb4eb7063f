"""Runs that are killed, that lose power, whose disk fails or is full: `python -m campaign.runs`.

    python -m campaign.runs                    the whole, going on where it was stopped; writes the result
    python -m campaign.runs kills              the parts whose name begins so, for the whole to find done
    python -m campaign.runs --so-far           writes the result of what is done by now
    python -m campaign.runs --sample kills     a sample of them, as JSON on stdout

Every part has controls: the same on code that is broken in one known way, where failures must be found.  Exit status 1
when a part finds a failure or a control finds none.
"""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine
from campaign import faults, full_disk, kills, power, sabotage
from campaign.ledger import ROOT, Estimate, Ledger, Part, Tally, bound, say, source_stamp, summary

RESULT = ROOT / "benchmarks/results/campaign.json"
PROGRESS = ROOT / "runs/campaign"
AT = {name: chunk for chunk, name in enumerate(power.SCENARIOS)}

PARTS = (
    Part(
        name="kills at every system call of a save",
        claim="the next run begins at the last checkpoint or the new one, and ends as the run that nobody killed",
        work=kills.at_saves,
        chunks=kills.SAVES + 1,
        size=1,
        sample={2: 40, 5: 40},
        controls={
            "a folder has its name before its data": (sabotage.NAMED_FIRST, 2, 40),
            "older checkpoints are pruned before the new one is there": (sabotage.PRUNED_FIRST, 2, 40),
            "the manifest is written first, in place": (sabotage.MANIFEST_FIRST, 2, 45),
            "drafts of crashed writers are never swept": (sabotage.UNSETTLED, 2, 40),
            **{f"a resume forgets {what}": (broken, 2, 150) for what, broken in sabotage.FORGOTTEN.items()},
        },
    ),
    Part(
        name="kills at every system call of a recovery",
        claim="as above, where the process is killed in a recovery from an earlier kill, or in its first save",
        work=kills.at_recoveries,
        chunks=2 * len(kills.WOUNDS),
        size=1,
        sample={0: 60, 2: 80, 4: 80},
        controls={
            "a replacement that was interrupted is never finished": (sabotage.UNSETTLED, 2, 150),
            "lines of metrics beyond the checkpoint stay": (sabotage.METRICS_UNCUT, 0, 150),
        },
    ),
    Part(
        name="kills at random instants",
        claim="a run that is killed again and again ends as the run that nobody killed",
        work=kills.at_random,
        chunks=20,
        size=50,
        sample={0: 20},
        controls={
            "a resume forgets the optimiser's state": (sabotage.FORGOTTEN["the optimiser's state"], 0, 8),
            "a resume forgets the generators": (sabotage.FORGOTTEN["the generators"], 0, 8),
        },
    ),
    Part(
        name="power failures, recovered",
        claim="what was on the disk for certain or what was being written is found, whole, and nothing else",
        work=power.recovered,
        chunks=len(AT),
        size=6_000,
        sample=dict.fromkeys(range(len(AT)), 150),
        controls={
            "files are not synced": (sabotage.UNSYNCED_FILES, AT["checkpoints, two kept"], 200),
            "folders are not synced": (sabotage.UNSYNCED_FOLDERS, AT["checkpoints, one kept"], 200),
            "a folder has its name before its data": (
                sabotage.NAMED_FIRST,
                AT["checkpoints, two kept"],
                200,
            ),
            "the manifest is written first": (sabotage.MANIFEST_FIRST, AT["checkpoints, two kept"], 200),
            "older checkpoints are pruned first": (sabotage.PRUNED_FIRST, AT["checkpoints, one kept"], 200),
            "nothing is verified, and files are not synced": (
                sabotage.both(sabotage.UNVERIFIED, sabotage.UNSYNCED_FILES),
                AT["checkpoints, two kept"],
                200,
            ),
            "nothing is verified": (sabotage.UNVERIFIED, AT["a checkpoint over a damaged one"], 200),
            "the old folder is removed before the new one is there": (
                sabotage.OLD_REMOVED_FIRST,
                AT["adapters"],
                200,
            ),
            "what crashed writers left is not settled": (sabotage.UNSETTLED, AT["a recovery"], 100),
            "lines of metrics are not synced": (sabotage.METRICS_UNSYNCED, AT["metrics"], 100),
        },
    ),
    Part(
        name="power failures, resumed",
        claim="a whole run that loses its power anywhere goes on to the end of the run that nothing happened to",
        work=power.resumed,
        chunks=15,
        size=20,
        sample={0: 8},
        controls={
            "files are not synced": (sabotage.UNSYNCED_FILES, 0, 20),
            "a resume forgets the generators": (sabotage.FORGOTTEN["the generators"], 0, 5),
        },
    ),
    Part(
        name="faults at every system call",
        claim="one line and exit status 1, or no harm; what was there stays good; the next run ends as it should",
        work=faults.at_every_call,
        chunks=len(faults.FAULTS) * faults.SLICES,
        size=0,
        sample=dict.fromkeys(range(0, len(faults.FAULTS) * faults.SLICES, faults.SLICES), 2),
        controls={
            "errors of writing are swallowed": (sabotage.WRITE_ERRORS_SWALLOWED, 0, 6),
            "folders are written in place": (sabotage.NAMED_FIRST, 0, 6),
            "a failure exits with 0": (sabotage.FAILURES_EXIT_WITH_0, 4, 2),
        },
    ),
    Part(
        name="full disks of every size",
        claim="one line that says what is free, exit status 1, and the run goes on once there is room",
        work=full_disk.at_every_size,
        chunks=full_disk.CHUNK,
        size=full_disk.SIZES,
        sample={0: 2, 11: 3},
        controls={"errors of writing are swallowed": (sabotage.WRITE_ERRORS_SWALLOWED, 0, 3)},
    ),
)


def main(words: list[str]) -> int:
    torch.set_num_threads(1)
    sampled, so_far = "--sample" in words, "--so-far" in words
    named = next((word for word in words if not word.startswith("--")), "")
    parts = [part for part in PARTS if part.name.startswith(named)]
    with _workplace() as place:
        if not so_far:
            _prepare(place, parts)
        if sampled:
            return _sample(place, parts)
        found, seconds = _whole(place, parts, so_far)
        if len(parts) == len(PARTS):
            _write(found, seconds, place)
    return 0 if all(map(_held, found.values())) else 1


def _prepare(place: Path, parts: list[Part]) -> None:
    if any(part.work in (kills.at_saves, kills.at_recoveries, kills.at_random, power.resumed) for part in parts):
        kills.prepare(place)
    if any(part.work in (faults.at_every_call, full_disk.at_every_size) for part in parts):
        faults.prepare(place / "command")


def _sample(place: Path, parts: list[Part]) -> int:
    found = {}
    for part in parts:
        tallies = [_worked(place, part, chunk, size)[0] for chunk, size in part.sample.items()]
        controls = {name: _controlled(place, part, name)[0] for name in part.controls}
        found[part.name] = _entry(part, tallies, controls)
    print(json.dumps(found, indent=2))
    return 0 if all(map(_held, found.values())) else 1


def _whole(place: Path, parts: list[Part], so_far: bool) -> tuple[dict[str, Any], float]:
    """What each part came to, and the seconds that it took."""
    keeper = Keeper(sum(part.chunks + len(part.controls) for part in parts), so_far)
    found = {}
    for part in parts:
        ledger = Ledger(PROGRESS / f"{part.name.replace(' ', '-')}.json", source_stamp())
        # Controls first: a campaign that cannot find what is broken need not go on.
        controls = {
            name: keeper.kept(ledger, part.name, name, partial(_controlled, place, part, name))
            for name in part.controls
        }
        tallies = [
            keeper.kept(ledger, part.name, str(chunk), partial(_worked, place, part, chunk, part.size))
            for chunk in range(part.chunks)
        ]
        found[part.name] = _entry(part, tallies, controls)
    return found, keeper.seconds


class Keeper:
    """Does what no ledger holds yet (or leaves it, with `so_far`), and tells how far the campaign is."""

    def __init__(self, total: int, so_far: bool) -> None:
        self.estimate, self.seconds, self.so_far = Estimate(total), 0.0, so_far

    def kept(self, ledger: Ledger, part: str, key: str, work: Callable[[], tuple[Tally, float]]) -> Tally | None:
        known = ledger.get(key)
        if known is None and self.so_far:
            return None
        if known is None:
            ledger.put(key, *work())
        tally = known or ledger.get(key) or Tally()
        self.seconds += ledger.seconds(key)
        failures = f"{len(tally.failures)} failures" + (f" ({tally.failures[0]})" if tally.failures else "")
        say(f"{self.estimate.passed(known is None)}  {part}, {key}: {tally.cases:,} cases, {failures}")
        return tally


def _worked(place: Path, part: Part, chunk: int, size: int, control: bool = False) -> tuple[Tally, float]:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=place) as folder:
        tally = Tally.of(part.work(Path(folder), chunk, size), until_one_fails=control)
    return tally, time.monotonic() - began


def _controlled(place: Path, part: Part, name: str) -> tuple[Tally, float]:
    broken, chunk, size = part.controls[name]
    with broken():
        return _worked(place, part, chunk, size, control=True)


def _entry(part: Part, tallies: Sequence[Tally | None], controls: Mapping[str, Tally | None]) -> dict[str, Any]:
    """Of what was done; a control on something that cannot be tried here shows nothing."""
    done = [tally for tally in tallies if tally is not None]
    shown = {
        name: {"cases": tally.cases, "failures": len(tally.failures), "red": bool(tally.failures)}
        for name, tally in controls.items()
        if tally is not None and tally.refused is None
    }
    return {**summary(part, done), "chunks": f"{len(done)} of {len(tallies)}", "controls": shown}


def _held(entry: dict[str, Any]) -> bool:
    return entry["failures"] == 0 and all(control["red"] for control in entry["controls"].values())


def _write(found: dict[str, Any], seconds: float, place: Path) -> None:
    cases, failures = sum(each["cases"] for each in found.values()), sum(each["failures"] for each in found.values())
    controls = [control["red"] for each in found.values() for control in each["controls"].values()]
    result = {
        "machine": machine(),
        "file_system": _file_system(place),
        "seconds": round(seconds),
        "cases": cases,
        "failures": failures,
        "failure_rate": bound(cases, failures),
        "controls": {"red": sum(controls), "of": len(controls)},
        "parts": found,
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    say(f"{cases:,} cases, {failures} failures, {sum(controls)} of {len(controls)} controls red; {RESULT}")


def _file_system(place: Path) -> str:
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    above = [(len(where), kind) for _, where, kind, *_ in mounts if place.is_relative_to(where)]
    return max(above)[1]


@contextmanager
def _workplace() -> Iterator[Path]:
    """In memory where there is room for files there: a kill leaves them the same, and syncs take no time."""
    memory = Path("/dev/shm")
    at = memory if memory.is_dir() and shutil.disk_usage(memory).free > 2e9 else None
    with tempfile.TemporaryDirectory(prefix="lorica-campaign-", dir=at) as place:
        yield Path(place)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
