"""Memory that runs out in a step: the same step in smaller parts, or one line and nothing lost."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from campaign.tiny_run import base, dataset
from lorica.adapter import attach
from lorica.errors import NoRoomError
from lorica.methods import LoRA
from lorica.tasks import Task
from lorica.tasks.causal_lm import CausalLanguageModelling
from lorica.train import TrainConfig, fit
from lorica.train.reporter import Quiet

ERRORS = {
    "device": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "allocator": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: can't allocate memory"),
    "python": MemoryError,
}


class Notes(Quiet):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def on_note(self, text: str) -> None:
        self.notes.append(text)


def cramped(most: int, error: Any, tried: list[int]) -> Task:
    task = CausalLanguageModelling()
    real = task.loss

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        tokens = batch.layout.total
        tried.append(tokens)
        value = real(model, batch)
        if tokens > most:
            value.register_hook(lambda grad: (_ for _ in ()).throw(error()))
        return value

    object.__setattr__(task, "loss", loss)
    return task


def run(task: Task, **settings: Any) -> tuple[dict[str, torch.Tensor], list[float], list[str]]:
    attached = attach(base().double(), LoRA(r=3, dropout=0.1), seed=1)
    told = Notes()
    config = TrainConfig(**{"steps": 4, "rows_per_step": 6, "learning_rate": 1e-2, **settings})
    done = fit(attached, task, dataset(), None, config, reporter=told)
    return attached.state(), [line["loss"] for line in done.history if "loss" in line], told.notes


@pytest.mark.parametrize("kind", ERRORS)
def test_a_step_that_does_not_fit_is_taken_in_smaller_parts(kind: str) -> None:
    tried: list[int] = []
    free, losses, _ = run(CausalLanguageModelling())
    small, again, notes = run(cramped(40, ERRORS[kind], tried))
    # four steps of double precision from sums in another order
    assert again == pytest.approx(losses, rel=1e-10)
    largest = max(tensor.abs().max() for tensor in free.values())
    assert all((free[key] - small[key]).abs().max() <= 1e-9 * largest for key in free)
    assert max(tried) > 40
    assert any("out of memory with" in note and "going on with" in note for note in notes)
    last = next(place for place, tokens in reversed(list(enumerate(tried))) if tokens > 40)
    assert len(tried) - last > 8, "later steps are not tried whole again"


def test_a_row_that_does_not_fit_ends_the_run_and_leaves_what_was_saved(tmp_path: Path) -> None:
    config = TrainConfig(steps=4, rows_per_step=6, learning_rate=1e-2, checkpoint_every=1, measure=False)
    room = [10_000, 10_000, 1]
    tried: list[int] = []
    task = cramped(1, MemoryError, tried)
    generous, calls = CausalLanguageModelling(), iter(room)
    attached = attach(base(), LoRA(r=3), seed=1)

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return (task if next(calls, 1) == 1 else generous).loss(model, batch)

    third = CausalLanguageModelling()
    object.__setattr__(third, "loss", loss)
    with pytest.raises(NoRoomError, match=r"step 3: out of memory with a single row of .* goes on") as caught:
        fit(attached, third, dataset(), None, config, folder=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 1
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())[-1] == "step-00000002"
    assert not (tmp_path / "run" / "adapter").exists()


def test_a_long_row_beside_short_ones_is_no_endless_loop() -> None:
    """The longest is alone from the beginning; the others are cut until each is alone too."""
    with pytest.raises(NoRoomError, match="single row"):
        run(cramped(1, MemoryError, []), micro_batch_tokens=8)


def test_another_error_is_no_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="something else"):
        run(cramped(1, lambda: RuntimeError("something else"), []))
