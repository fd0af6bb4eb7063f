"""A run in which every part of a checkpoint matters to its last bits.

It has dropout, evaluations, rows of ragged lengths, a partial last step of each epoch, and a method with a life that
holds state, draws from torch's global generator, and remembers which rows it was taught, in which order: so nothing
reads rows but its steps (`command_run.py` tries its heaviest batch first, as runs do).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from campaign.children import End, done
from campaign.tiny_run import base, dataset, lora
from lorica.adapter import attach
from lorica.data import Dataset, Example
from lorica.methods import LoRA
from lorica.methods.contract import Life
from lorica.tasks import TASKS
from lorica.train import Quiet, TrainConfig, fit

CONFIG = TrainConfig(
    epochs=3,
    rows_per_step=4,
    micro_batch_tokens=40,
    learning_rate=1e-2,
    clip=0.5,
    evaluate_every=4,
    checkpoint_every=2,
    measure=False,
)
ROWS, STEPS, SAVES = 11, 9, 5
"""Checkpoints are saved after steps 2, 4, 6, 8 and 9; then the adapter is."""

TAUGHT: list[int] = []


class Noted(Dataset):
    """Notes each row that is taken for teaching."""

    def __getitem__(self, index: int) -> Example:
        TAUGHT.append(index)
        return super().__getitem__(index)


class Wandering(Life):
    """Pulls B towards zero by an amount that drifts at random."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.modules, self.amount = modules, torch.tensor(0.01)
        TAUGHT.clear()

    def extra_loss(self) -> Tensor:
        return self.amount * sum(module.get_parameter("B").square().sum() for module in self.modules.values())

    def after_step(self, step: int, total: int) -> None:
        self.amount = self.amount + 0.01 * torch.rand(())

    def state_dict(self) -> dict[str, Tensor]:
        return {"amount": self.amount, "rows": torch.tensor(TAUGHT)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.amount = state["amount"].clone()
        TAUGHT[:] = state["rows"].tolist()


class Living(LoRA):
    def life(self, modules: Mapping[str, nn.Module]) -> Wandering:
        return Wandering(modules)


class Told(Quiet):
    """Writes down where a run began and what it said, for the process that watches it."""

    def __init__(self, path: Path) -> None:
        self.path, self.notes = path, []

    def on_note(self, text: str) -> None:
        self.notes.append(text)

    def on_plan(self, total_steps: int, done_steps: int, epochs: float) -> None:
        self.path.write_text(json.dumps({"began": done_steps, "notes": self.notes}))


def train(folder: Path, keep: int = 2) -> None:
    """Begins the run of a folder, or goes on with it."""
    torch.manual_seed(0)
    attached = attach(base(), Living(**lora(target_modules="minimal").model_dump()))
    rows = dataset(ROWS)
    fit(
        attached,
        TASKS["causal_lm"],
        Noted(rows.examples, (), len(rows)),
        dataset(4, seed=1),
        CONFIG.model_copy(update={"keep_checkpoints": keep}),
        folder=folder,
        resume=True,
        reporter=Told(beside(folder, "told")),
    )


def beside(folder: Path, what: str) -> Path:
    return folder.with_name(f"{folder.name}.{what}")


@dataclass(frozen=True)
class Resumed:
    """A run that was gone on with: how its process ended, the step it began after, and what it had to say."""

    end: End
    began: int
    notes: tuple[str, ...]


def resumed(folder: Path) -> Resumed:
    end = done(lambda: train(folder), beside(folder, "said"))
    return Resumed(end, *told(folder))


def told(folder: Path) -> tuple[int, tuple[str, ...]]:
    """(-1, ()) of a run that did not get so far as to begin."""
    path = beside(folder, "told")
    found = json.loads(path.read_text() or "{}") if path.exists() else {}
    return found.get("began", -1), tuple(found.get("notes", ()))
