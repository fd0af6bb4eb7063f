"""`lorica train recipe.yaml --resume` in a forked child: a run as a person starts it, in a folder of its own.

Where it begins, a run is half done: a checkpoint of step 1, lines of metrics beyond it, and an older adapter.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from campaign import tiny_base, trees
from campaign.children import End, done
from campaign.outcomes import different, litter, outcome
from lorica.adapter.file import read
from lorica.budget.machine import machine, rated
from lorica.cli import entry
from lorica.errors import LoricaError
from lorica.train import checkpoint

RECIPE = """\
model: {place}/base
method: {{name: lora, r: 8, alpha: 12, dropout: 0.1}}
data: {{train: {place}/train.jsonl, eval: {place}/eval.jsonl}}
train: {{steps: 3, rows_per_step: 3, learning_rate: 1e-2, evaluate_every: 2, checkpoint_every: 1, keep_checkpoints: 1}}
output: run
"""


@dataclass(frozen=True)
class Workplace:
    """A folder with a base, data and a recipe; each case is a folder beside them with a `run` in it."""

    place: Path

    @classmethod
    def made(cls, place: Path) -> "Workplace":
        place.mkdir(parents=True)
        tiny_base.write(place / "base")
        rows = [json.dumps({"prompt": f"after {n}: ", "completion": f"{n + 1}"}) for n in range(12)]
        (place / "train.jsonl").write_text("\n".join(rows[:9]) + "\n")
        (place / "eval.jsonl").write_text("\n".join(rows[9:]) + "\n")
        (place / "recipe.yaml").write_text(RECIPE.format(place=place))
        rated(machine("cpu"), torch.float32)  # measured once a process, so once for all that are forked from it
        return cls(place)

    def train(self, case: Path, *settings: str) -> Callable[[], int]:
        """The command, to be run in a child: it gives its exit status."""
        words = [word for setting in settings for word in ("--set", setting)]

        def command() -> int:
            os.chdir(case)
            return entry.run(["train", str(self.place / "recipe.yaml"), "--resume", *words])

        return command

    def trained(self, case: Path, *settings: str) -> End:
        case.mkdir(parents=True, exist_ok=True)
        return done(self.train(case, *settings), case / "said")

    @cached_property
    def whole(self) -> dict[str, Any]:
        """What a run comes to that begins half done and that nothing happens to."""
        case = self.begin(self.place / "whole")
        end = self.trained(case)
        if end.status:
            raise RuntimeError(end.said)
        return outcome(case / "run")

    @cached_property
    def half(self) -> Path:
        """A run half done, to be copied."""
        older, longer = self.place / "older", self.place / "longer"
        for case, setting in ((older, "train.learning_rate=1e-3"), (longer, "train.keep_checkpoints=9")):
            end = self.trained(case, setting)
            if end.status:
                raise RuntimeError(end.said)
        for step in (2, 3):
            trees.erase(longer / f"run/checkpoints/step-0000000{step}")
        for name in ("adapter", "report.html"):
            trees.erase(longer / "run" / name)
        trees.copy(older / "run/adapter", longer / "run/adapter")
        return longer / "run"

    @cached_property
    def adapters(self) -> tuple[Any, Any]:
        """The tensors of the older adapter and of the new one."""
        _ = self.whole
        return read(self.half / "adapter").tensors, read(self.place / "whole/run/adapter").tensors

    def begin(self, case: Path) -> Path:
        case.mkdir(parents=True)
        trees.copy(self.half, case / "run")
        return case

    def harm(self, case: Path) -> list[str]:
        """What a failed run has done to what was there: looked at in a copy, since looking settles what it finds."""
        look = trees.copy(case / "run", case / "look")
        wrong = []
        found, skipped = checkpoint.newest(look / "checkpoints")
        if found is None:
            wrong.append("no checkpoint is left")
        wrong += [f"checkpoint {path.name} is damaged: {reason}" for path, reason in skipped]
        try:
            tensors = read(look / "adapter").tensors
            if not any(_same(tensors, known) for known in self.adapters):
                wrong.append("the adapter is neither the old nor the new")
        except LoricaError as error:
            wrong.append(f"the adapter is gone: {error}")
        trees.erase(look)
        return wrong

    def difference(self, case: Path) -> list[str]:
        return [f"{part} differs" for part in different(self.whole, outcome(case / "run"))]


def _same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def told_well(end: End, case: Path, word: str) -> list[str]:
    """Whether a failure was told as the plan says: exit status 1, and one line that names a path and the reason."""
    lines = [line for line in end.said.splitlines() if line.startswith("error: ")]
    if end.status != 1 or len(lines) != 1:
        return [f"exit status {end.status} (signal {end.signal}) and {len(lines)} error lines: {end.said[-200:]}"]
    said = lines[0].removeprefix("error: ")
    where = said.startswith("run") or str(case) in said
    wrong = [] if where and word in said and "unexpected" not in said else [f"told badly: {said}"]
    return wrong + (["a traceback was shown"] if "Traceback" in end.said else [])


def leftovers(case: Path) -> list[str]:
    return litter(case / "run")
