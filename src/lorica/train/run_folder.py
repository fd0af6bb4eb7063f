"""runs/NAME/: metrics.jsonl, checkpoints/ and adapter/, held by one process at a time."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from lorica import durable
from lorica.errors import CheckpointError, RequestError
from lorica.train import checkpoint, room
from lorica.train.checkpoint import Checkpoint

HOLDINGS = ("metrics.jsonl", "checkpoints", "adapter")


class RunFolder:
    """`with RunFolder(path, resume, identity) as run:` then `run.start` is the checkpoint to go on from, or None."""

    def __init__(self, path: Path, *, resume: bool, identity: Mapping[str, Any], keep: int) -> None:
        self.path, self.resume, self.identity, self.keep = path, resume, identity, keep
        self.metrics_file = path / "metrics.jsonl"
        self.start: Checkpoint | None = None
        self.skipped: list[tuple[Path, str]] = []
        self.history: list[dict[str, Any]] = []
        self._held = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as held:
            held.enter_context(durable.Lock(self.path))
            durable.sweep(self.path)
            if self.resume:
                self._find_start()
            else:
                refuse_occupied(self.path)
                room.forget(self.path)
            self._metrics = held.enter_context(durable.JsonLines(self.metrics_file))
            self._held = held.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    def record(self, line: Mapping[str, Any]) -> None:
        self._metrics.write(line)
        self.history.append(dict(line))

    def save(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """A checkpoint; the lines that lead up to it are on the disk before it is."""
        self._metrics.sync()
        groups = {name: group for name, group in tensors.items() if group}
        checkpoint.save(self.path / "checkpoints", step, groups, state, keep=self.keep, identity=self.identity)

    def how_to_resume(self) -> str:
        recipe = self.path / "recipe.yaml"
        return f"lorica train {recipe} --resume" if recipe.exists() else "resume=True and the same arguments"

    def _find_start(self) -> None:
        self.start, self.skipped = checkpoint.newest(self.path / "checkpoints")
        if self.start is not None:
            self._require_same(self.start)
        durable.truncate_after(self.metrics_file, 0 if self.start is None else self.start.step)
        with durable.reporting(self.metrics_file):
            text = self.metrics_file.read_text() if self.metrics_file.exists() else ""
        self.history = [json.loads(line) for line in text.splitlines()]

    def _require_same(self, start: Checkpoint) -> None:
        """Other data or settings make a resume wrong; other versions or threads keep it from being exact to the bit."""
        changed = [*start.mismatches(self.identity), *start.drift()]
        if changed:
            raise CheckpointError(
                f"{start.folder}: cannot be continued, since {'; '.join(changed)}; restore that (threads: "
                "OMP_NUM_THREADS), or choose another output"
            )


def start_of(path: Path) -> Mapping[str, Tensor] | None:
    """What the modules of the run in a folder started from, by its newest checkpoint; None without one."""
    if not any((path / "checkpoints").glob("step-*/start.safetensors")):
        return None
    with durable.Lock(path):
        found, _ = checkpoint.newest(path / "checkpoints")
    return None if found is None else found.tensors.get("start", {})


def refuse_occupied(path: Path) -> None:
    """RequestError where a run is in the folder already."""
    held = [name for name in HOLDINGS if (path / name).exists()]
    if held:
        raise RequestError(
            f"{path}: holds a run already ({', '.join(held)}); continue it with --resume (resume=True), "
            "or choose another output"
        )
