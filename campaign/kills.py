"""SIGKILL at every system call of every save and of every recovery, and at random instants of whole runs.

Whatever the instant, the next run begins at the step of the last checkpoint or of the one being saved, and the end is
that of the run which nobody killed: losses, order of rows, adapter, optimiser, generators, files.

A state of the disk that was seen before is not resumed again: a resume is a function of that state alone.
"""

import itertools
import json
import os
import random
import shutil
from collections.abc import Callable, Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from campaign import living_run, system_calls, trees
from campaign.children import done, killed_after, processor_seconds
from campaign.ledger import Tally
from campaign.living_run import SAVES, beside
from campaign.outcomes import different, outcome
from lorica.adapter import Attached
from lorica.train.run_folder import RunFolder

SAVED = (0, 2, 4, 6, 8, 9)
HELD_OPEN = ("metrics.jsonl", ".lock")
SECOND = "1-0123abcd"
"""The end of a draft's name: process 1 holds no lock of ours."""


def at_saves(place: Path, chunk: int, size: int) -> Iterator[Tally]:
    """Chunk: which save of the run, the last being the adapter's; every `size`-th call of it."""
    adapter = chunk == SAVES
    hook = (Attached, "save", 1) if adapter else (RunFolder, "save", chunk + 1)
    allowed = {SAVED[-1]} if adapter else {SAVED[chunk], SAVED[chunk + 1]}
    folder = place / "run"
    siege = _siege(folder, hook, place, size, HELD_OPEN)
    yield from _judged(place, siege, allowed)


def at_recoveries(place: Path, chunk: int, size: int) -> Iterator[Tally]:
    """Chunk: which wound, and whether the recovery itself or the first save after it is struck."""
    wound, allowed = WOUNDS[chunk // 2]
    folder = place / "run"
    wound(folder)
    if chunk % 2 == 0:
        siege = _siege(folder, (RunFolder, "__enter__", 1), place, size, ())
        yield from _judged(place, siege, {allowed})
    else:
        hook = (Attached, "save", 1) if allowed == SAVED[-1] else (RunFolder, "save", 1)
        siege = _siege(folder, hook, place, size, HELD_OPEN)
        allowed_now = {allowed} if allowed == SAVED[-1] else {allowed, SAVED[SAVED.index(allowed) + 1]}
        yield from _judged(place, siege, allowed_now)


def at_random(place: Path, chunk: int, size: int) -> Iterator[Tally]:
    """`size` kills: each run is killed again whenever it is resumed, some of them early, until it ends by itself."""
    chance, seconds, kills = random.Random(f"kills {chunk}"), _usual_seconds(), 0
    for number in itertools.count():
        if kills >= size:
            break
        folder, tally = place / f"run-{number}", Tally(counts={"runs": 1})
        began = -1
        while True:
            # A third of the kills fall into the recovery at a run's start.
            delay = chance.uniform(0, seconds * (0.2 if chance.random() < 1 / 3 else 1.0))
            beside(folder, "told").unlink(missing_ok=True)
            end = killed_after(delay, lambda folder=folder: living_run.train(folder), beside(folder, "said"))
            now, notes = living_run.told(folder)
            tally.failures += complaints(folder.name, notes)
            if 0 <= now < began:
                tally.failures.append(f"{folder.name}: began after step {now}, having begun after {began} before")
            began = max(began, now)
            if not end.killed:
                break
            tally.cases += 1
        if end.status:
            tally.failures.append(f"{folder.name}: a resumed run failed: {end.said[-200:]}")
        else:
            tally.failures += [f"{folder.name}: {part} differs" for part in differences(folder)]
        shutil.rmtree(folder)
        kills += tally.cases
        yield tally


def _siege(folder: Path, hook: tuple[type, str, int], out: Path, stride: int, staying: Collection[str]) -> Any:
    """The states in which a run is left that is killed in the n-th call of a method."""
    owner, name, turn = hook
    real = getattr(owner, name)

    def stage() -> None:
        turns = itertools.count(1)

        def besieged(self: Any, *args: Any, **kwargs: Any) -> Any:
            if next(turns) < turn:
                return real(self, *args, **kwargs)
            _strike(lambda: real(self, *args, **kwargs), folder, out, stride, staying)
            os._exit(0)

        setattr(owner, name, besieged)
        living_run.train(folder)
        raise RuntimeError(f"{name} was called less than {turn} times")

    end = done(stage, out / "stage.said")
    if end.status or end.signal:
        raise RuntimeError(f"the stage failed: {end.said}")
    return json.loads((out / "siege.json").read_text())


def _strike(action: Callable[[], object], folder: Path, out: Path, stride: int, staying: Collection[str]) -> None:
    original = trees.copy(folder, out / "original") if folder.exists() else None
    seen: dict[str, int] = {}
    for k in itertools.count(1, stride):
        traced = system_calls.killed_at(k, action, out / "struck.said")
        if not traced.end.killed and traced.end.status:
            raise RuntimeError(f"the action failed by itself: {traced.end.said}")
        state = trees.fingerprint(folder) if folder.exists() else "nothing"
        if state not in seen:
            seen[state] = k
            if folder.exists():
                trees.copy(folder, out / f"state-{k}")
        if not traced.end.killed:
            break
        if original is not None:
            trees.restore(folder, original, staying)
    kills = (traced.calls + stride - 1) // stride
    (out / "siege.json").write_text(json.dumps({"kills": kills, "calls": traced.calls, "states": list(seen.values())}))


def _judged(place: Path, siege: Any, allowed: Collection[int]) -> Iterator[Tally]:
    yield Tally(siege["kills"], {"system_calls": siege["calls"]})
    for k in siege["states"]:
        wrong = _wrong(place / f"state-{k}", f"killed before call {k}", allowed)
        yield Tally(counts={"states_resumed": 1}, failures=wrong)


def _wrong(folder: Path, name: str, allowed: Collection[int]) -> list[str]:
    """Of a run that is gone on with from a state."""
    run = living_run.resumed(folder)
    if run.end.status:
        return [f"{name}: the resumed run failed: {run.end.said[-200:]}"]
    wrong = [] if run.began in allowed else [f"{name}: began after step {run.began}, not {sorted(allowed)}"]
    return wrong + complaints(name, run.notes) + [f"{name}: {part} differs" for part in differences(folder)]


def complaints(name: str, notes: Collection[str]) -> list[str]:
    """A crash alone never leaves a checkpoint that has to be skipped."""
    return [f"{name}: {note}" for note in notes if "not used" in note]


def differences(folder: Path) -> list[str]:
    return different(_whole()[1], outcome(folder))


def prepare(place: Path) -> None:
    """Makes the runs that nobody kills: what all others are compared with, and cut from."""
    _Place.folder = place
    _usual_seconds()
    _whole()
    _whole(keep=8)


class _Place:
    folder: Path


@cache
def _usual_seconds() -> float:
    folder = _Place.folder / "usual"
    return processor_seconds(lambda: living_run.train(folder), beside(folder, "said"))


@cache
def _whole(keep: int = 2) -> tuple[Path, dict[str, Any]]:
    folder = _Place.folder / f"whole-{keep}"
    end = done(lambda: living_run.train(folder, keep), beside(folder, "said"))
    if end.status:
        raise RuntimeError(end.said)
    return folder, outcome(folder)


def _cut_back(folder: Path, step: int, lines: int) -> None:
    """As the run was between two checkpoints, its last line of metrics torn."""
    trees.copy(_whole(keep=8)[0], folder)
    trees.erase(folder / "adapter")
    for path in (folder / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > step:
            trees.erase(path)
    whole = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_bytes(b"".join(whole[:lines]) + whole[lines][:20])


def killed_in_a_save(folder: Path) -> None:
    _cut_back(folder, step=4, lines=7)
    draft = trees.copy(
        _whole(keep=8)[0] / "checkpoints/step-00000006", folder / f"checkpoints/.tmp-step-00000006-{SECOND}"
    )
    (draft / "MANIFEST.json").unlink()
    os.truncate(draft / "optimizer.safetensors", 100)


def killed_in_a_replacement(folder: Path) -> None:
    _cut_back(folder, step=4, lines=5)
    old = folder / "checkpoints" / f".old-step-00000004-{SECOND}"
    (folder / "checkpoints/step-00000004").rename(folder / "checkpoints" / f".tmp-step-00000004-{SECOND}")
    trees.copy(folder / "checkpoints/step-00000002", old)


def killed_while_the_adapter_was_replaced(folder: Path) -> None:
    trees.copy(_whole()[0], folder)
    trees.copy(folder / "adapter", folder / f".tmp-adapter-{SECOND}")
    (folder / "adapter").rename(folder / f".old-adapter-{SECOND}")


WOUNDS = (
    (killed_in_a_save, 4),
    (killed_in_a_replacement, 4),
    (killed_while_the_adapter_was_replaced, 9),
)
"""How a run was left, and the step after which it must begin."""
