"""runs/NAME/: metrics.jsonl, checkpoints/ and adapter/, held by one process at a time.

`began.json` keeps when the run began, for the run that goes on: chat templates may write the date into its rows.
"""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from lorica import durable
from lorica.errors import CheckpointError, RequestError
from lorica.train import checkpoint, room
from lorica.train.checkpoint import Checkpoint

BEGAN = "began.json"
HOLDINGS = ("adapter", "checkpoints/step-*", "report.html")
"""What a run is kept by; lines of metrics alone lead nowhere."""


class RunFolder:
    """`with RunFolder(path, resume, identity) as run:` then `run.start` is the checkpoint to go on from, or None.

    finish: no step follows that checkpoint, so it has to be there, and may be of other versions or threads.
    recipe: the text of recipe.yaml, where the run has one.  began: as `began` finds it.
    """

    def __init__(
        self,
        path: Path,
        *,
        resume: bool,
        identity: Mapping[str, Any],
        keep: int,
        finish: bool = False,
        recipe: str | None = None,
        began: datetime | None = None,
    ) -> None:
        self.path, self.resume, self.finish = path, resume or finish, finish
        self.identity, self.keep, self.recipe, self.began = identity, keep, recipe, began
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
                durable.sweep(self.path / "checkpoints")
                refuse_occupied(self.path)
                room.forget(self.path)
            if self.start is None:
                self._begin()
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

    def how_to(self, word: str) -> str:
        """`word`: resume or finish."""
        if self.recipe is None:
            return f"{word}=True and the same arguments"
        return f"lorica train {self.path / 'recipe.yaml'} --{word}"

    def how_to_keep(self) -> str:
        """What to say of what was learned where no more will be; nothing before the first checkpoint."""
        if not (saved := checkpoint.folders(self.path / "checkpoints")):
            return ""
        return f"; {self.how_to('finish')} makes the adapter that {saved[-1]} holds"

    def _begin(self) -> None:
        """What stands there of a run that saved nothing may be of another recipe, the base's score included."""
        durable.remove(self.metrics_file)
        if self.recipe is not None:
            durable.write_text(self.path / "recipe.yaml", self.recipe)
        if self.began is not None:
            durable.write_json(self.path / BEGAN, {"began": self.began.isoformat()})

    def _find_start(self) -> None:
        self.start, self.skipped = checkpoint.newest(self.path / "checkpoints")
        if self.start is None and self.finish:
            told = "".join(f"; {folder}: {reason}" for folder, reason in self.skipped)
            raise CheckpointError(f"{self.path}: no checkpoint verifies, so no adapter can be made of one{told}")
        if self.start is None:
            return
        self._require_same(self.start)
        durable.truncate_after(self.metrics_file, self.start.step)
        with durable.reporting(self.metrics_file):
            text = self.metrics_file.read_text() if self.metrics_file.exists() else ""
        self.history = [json.loads(line) for line in text.splitlines()]

    def _require_same(self, start: Checkpoint) -> None:
        """Other data or settings make a resume wrong; other versions or threads keep it from being exact to the bit."""
        changed = [*start.mismatches(self.identity), *([] if self.finish else start.drift())]
        if changed:
            how = " (threads: OMP_NUM_THREADS)" if any(what.startswith("threads") for what in changed) else ""
            raise CheckpointError(
                f"{start.folder}: cannot be continued, since {'; '.join(changed)}; restore that{how}, or choose "
                "another output"
            )


def began(path: Path | None, *, resume: bool) -> datetime:
    """When the run in a folder began, where it is gone on with; otherwise now."""
    if path is None or not resume or not (path / BEGAN).exists():
        return datetime.now()
    return datetime.fromisoformat(durable.read_json(path / BEGAN)["began"])


def start_of(path: Path) -> Mapping[str, Tensor] | None:
    """What the modules of the run in a folder started from, by its newest checkpoint; None without one."""
    if not any((path / "checkpoints").glob("step-*/start.safetensors")):
        return None
    with durable.Lock(path):
        found, _ = checkpoint.newest(path / "checkpoints")
    return None if found is None else found.tensors.get("start", {})


def refuse_occupied(path: Path) -> None:
    """RequestError where a run is kept in the folder already."""
    held = sorted({found.relative_to(path).parts[0] for name in HOLDINGS for found in path.glob(name)})
    if held:
        raise RequestError(
            f"{path}: holds a run already ({', '.join(held)}); continue it with --resume (resume=True), "
            "or choose another output"
        )


def require_saved(path: Path) -> None:
    """RequestError where no checkpoint is in the folder."""
    if not checkpoint.folders(path / "checkpoints"):
        raise RequestError(f"{path}: holds no checkpoint to make an adapter of; train first, or name the run's output")
