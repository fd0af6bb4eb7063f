"""Power failures: disks that a crash can leave, with unsynced writes lost, torn, zeroed or out of order, are recovered.

The work is recorded once (`op_log`); each disk is written out and recovered by the code that a resume or a load runs.
What was promised when the power failed is there, or what was being written then: whole, and never anything else.
"""

import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from campaign import kills, living_run
from campaign.children import done
from campaign.ledger import Tally
from campaign.op_log import crashes, recording, write_out
from campaign.outcomes import litter
from campaign.tiny_run import base, lora, noisy
from lorica import durable
from lorica.adapter import Attached, attach
from lorica.adapter.file import read
from lorica.errors import AdapterError, RequestError
from lorica.train import checkpoint
from lorica.train.run_folder import RunFolder

Promise = Callable[[Any], None]


@dataclass(frozen=True)
class Scenario:
    """prepare(root) is on the disk, work(root, promise) is recorded, judge(root, promised) says what is wrong or ""."""

    prepare: Callable[[Path], object]
    work: Callable[[Path, Promise], object]
    judge: Callable[[Path, Any], str]


def recovered(place: Path, chunk: int, size: int) -> Iterator[Tally]:
    """Chunk: which of `SCENARIOS`; `size`: how many different disks, at most."""
    scenario = list(SCENARIOS.values())[chunk]
    root = place / "root"
    root.mkdir()
    scenario.prepare(root)
    with recording(root) as recorder:
        scenario.work(root, recorder.mark)
    shutil.rmtree(root)
    yield Tally(counts={"operations": len(recorder.log)})
    for crash in crashes(recorder, size, f"power {chunk}"):
        tally = Tally(cases=1)
        write_out(crash.tree, root)
        if wrong := _verdict(scenario, root, crash.promised):
            tally.failures.append(f"{list(SCENARIOS)[chunk]}, before operation {crash.at}: {wrong}")
        shutil.rmtree(root)
        yield tally


def _verdict(scenario: Scenario, root: Path, promised: Any) -> str:
    try:
        return scenario.judge(root, promised)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def resumed(place: Path, chunk: int, size: int) -> Iterator[Tally]:
    """A whole run is recorded, and `size` of the disks that a crash of it can leave are resumed for real."""
    folder = place / "run"
    folder.mkdir()
    end = done(lambda: _record_run(folder, place, size, f"run {chunk}"), place / "said")
    if end.status:
        raise RuntimeError(end.said)
    for path in sorted(place.glob("state-*.json")):
        promised = json.loads(path.read_text())
        wrong = _resume(path.with_suffix(""), promised)
        shutil.rmtree(path.with_suffix(""), ignore_errors=True)
        yield Tally(cases=1, failures=[f"{path.stem}: {each}" for each in wrong])


def _record_run(folder: Path, place: Path, size: int, seed: str) -> None:
    with recording(folder) as recorder:
        save = RunFolder.save

        def promising(self: RunFolder, step: int, *rest: Any) -> None:
            save(self, step, *rest)
            recorder.mark(step)

        RunFolder.save = promising
        recorder.mark(0)
        living_run.train(folder)
    found = list(crashes(recorder, 40 * size, seed))
    for number, crash in enumerate(random.Random(seed).sample(found, min(size, len(found)))):
        write_out(crash.tree, place / f"state-{number}")
        (place / f"state-{number}.json").write_text(json.dumps(crash.promised))


def _resume(folder: Path, promised: int) -> list[str]:
    run = living_run.resumed(folder)
    if run.end.status:
        return [f"the resumed run failed: {run.end.said[-200:]}"]
    allowed = {promised, kills.SAVED[min(kills.SAVED.index(promised) + 1, len(kills.SAVED) - 1)]}
    wrong = [] if run.began in allowed else [f"began after step {run.began}, and {promised} was on the disk"]
    return wrong + kills.complaints("", run.notes) + [f"{part} differs" for part in kills.differences(folder)]


def tensors_at(step: int) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(step)
    weights = torch.randn(9, 16, generator=generator)
    return {
        "adapter": {"q.A": weights, "q.B": weights.t()},
        "optimizer": {"q.A.exp_avg": weights * 3, "q.A.step": torch.tensor(float(step))},
    }


def save(root: Path, step: int, keep: int) -> None:
    checkpoint.save(root / "checkpoints", step, tensors_at(step), {"step": step}, keep=keep, identity={"of": "a run"})


def _judge_checkpoint(root: Path, promised: int, may_skip: bool = False) -> str:
    found, skipped = checkpoint.newest(root / "checkpoints")
    step = 0 if found is None else found.step
    if step not in (promised, promised + 1):
        return f"step {step} was found, and {promised} was on the disk ({skipped})"
    if skipped and not may_skip:
        return f"skipped {skipped[0][0].name}: {skipped[0][1]}"
    if found is not None and (found.state != {"step": step} or not _same(found.tensors, tensors_at(step))):
        return f"step {step} does not hold what was saved"
    left = litter(root)
    return f"{left} is left" if left else ""


def _same(found: Mapping[str, Mapping[str, Tensor]], expected: Mapping[str, Mapping[str, Tensor]]) -> bool:
    return found.keys() == expected.keys() and all(
        found[group].keys() == expected[group].keys()
        and all(torch.equal(found[group][name], tensor) for name, tensor in expected[group].items())
        for group in expected
    )


def saves(first: int, keep: int) -> Scenario:
    """Steps `first` and the next are saved, with those before them on the disk."""

    def work(root: Path, promise: Promise) -> None:
        promise(first - 1)
        for step in (first, first + 1):
            save(root, step, keep)
            promise(step)

    return Scenario(lambda root: [save(root, step, keep) for step in range(1, first)], work, _judge_checkpoint)


def _save_over_damage() -> Scenario:
    def prepare(root: Path) -> None:
        save(root, 1, keep=2)
        save(root, 2, keep=2)
        (root / "checkpoints/step-00000002/state.json").write_text("{}")

    def work(root: Path, promise: Promise) -> None:
        promise(1)
        save(root, 2, keep=2)
        promise(2)

    def judge(root: Path, promised: int) -> str:
        return _judge_checkpoint(root, promised, may_skip=promised == 1)

    return Scenario(prepare, work, judge)


def _recovery() -> Scenario:
    """A replacement that died between its renames, and a save that died half way: the recovery dies too."""

    def prepare(root: Path) -> None:
        for step in (1, 2, 3):
            save(root, step, keep=3)
        at = root / "checkpoints"
        shutil.copytree(at / "step-00000001", at / f".old-step-00000002-{kills.SECOND}")
        (at / "step-00000002").rename(at / f".tmp-step-00000002-{kills.SECOND}")
        (at / "step-00000003").rename(at / f".tmp-step-00000003-{kills.SECOND}")
        (at / f".tmp-step-00000003-{kills.SECOND}" / "MANIFEST.json").unlink()

    def work(root: Path, promise: Promise) -> None:
        promise(2)
        checkpoint.newest(root / "checkpoints")

    return Scenario(prepare, work, _judge_checkpoint)


@cache
def _adapters() -> tuple[Attached, ...]:
    return tuple(noisy(attach(base(), lora(target_modules="minimal")), seed) for seed in (1, 2, 3))


def _adapter_saves() -> Scenario:
    """An adapter is saved where none was, then twice over the one before."""

    def work(root: Path, promise: Promise) -> None:
        promise(0)
        for version, attached in enumerate(_adapters(), start=1):
            attached.save(root / "out")
            promise(version)

    return Scenario(lambda root: None, work, _judge_adapter)


def _judge_adapter(root: Path, promised: int) -> str:
    try:
        tensors = read(root / "out").tensors
    except RequestError:
        return f"no adapter, and version {promised} was on the disk" if promised else ""
    except AdapterError as error:
        return f"a damaged adapter: {error}"
    versions = [n for n, attached in enumerate(_adapters(), start=1) if _same({"": tensors}, {"": attached.state()})]
    if not versions:
        return "an adapter that was never saved was accepted"
    _adapters()[0].save(root / "out")
    left = litter(root)
    return f"{left} is left by the next save" if left else _outside(versions[0], promised)


def _outside(version: int, promised: int) -> str:
    return "" if version in (promised, promised + 1) else f"version {version}, and {promised} was on the disk"


def _metrics() -> Scenario:
    """Lines are appended, brought to the disk, appended again, and cut back as a resume does."""

    def work(root: Path, promise: Promise) -> None:
        promise(0)
        path = root / "run" / "metrics.jsonl"
        with durable.JsonLines(path) as lines:
            for step in range(1, 7):
                lines.write({"step": step, "loss": 1 / step})
                if step % 3 == 0:
                    lines.sync()
                    promise(step)
        promise(4)
        durable.truncate_after(path, 4)

    return Scenario(lambda root: None, work, _judge_metrics)


def _judge_metrics(root: Path, promised: int) -> str:
    path = root / "run" / "metrics.jsonl"
    durable.truncate_after(path, promised)
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    expected = [{"step": step, "loss": 1 / step} for step in range(1, promised + 1)]
    steps = [line["step"] for line in found]
    return "" if found == expected else f"lines {steps}, and 1 to {promised} were on the disk"


SCENARIOS = {
    "the first checkpoints": saves(1, keep=2),
    "checkpoints, two kept": saves(3, keep=2),
    "checkpoints, one kept": saves(2, keep=1),
    "a checkpoint over a damaged one": _save_over_damage(),
    "a recovery": _recovery(),
    "adapters": _adapter_saves(),
    "metrics": _metrics(),
}
