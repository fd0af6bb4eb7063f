"""A run tries its heaviest micro-batch: it is refused before the first step, or goes on as if nothing had been."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from campaign.tiny_run import base, dataset, lora
from lorica.adapter import attach
from lorica.budget import Machine
from lorica.data import micro_batches
from lorica.errors import NoRoomError
from lorica.methods import METHODS
from lorica.tasks.causal_lm import CausalLanguageModelling
from lorica.train import TrainConfig, fit, rehearsal
from lorica.train.heaviest import heaviest
from lorica.train.loop import trying
from lorica.train.reporter import Quiet
from lorica.train.room import Room

METHODS_TRIED = {
    "lora": {"r": 4, "alpha": 12, "dropout": 0.1},
    "adalora": {"r": 3, "init_r": 4, "tinit": 1, "tfinal": 2},
    "dora": {"r": 4},
}


class Notes(Quiet):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def on_note(self, text: str) -> None:
        self.notes.append(text)


def gpt2() -> torch.nn.Module:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=61, n_positions=32, n_embd=16, n_layer=2, n_head=2)).eval()


def trained(model: torch.nn.Module, method: Any, **settings: Any) -> tuple[list[Any], dict[str, torch.Tensor], Any]:
    """The lines of a run without what a clock or a memory says, the adapter, and the generator after it."""
    attached = attach(model, method, seed=1)
    torch.manual_seed(5)
    config = TrainConfig(**{"steps": 6, "rows_per_step": 6, "learning_rate": 1e-2, **settings})
    done = fit(attached, CausalLanguageModelling(), dataset(), None, config)
    lines = [(line["loss"], line["grad_norm"], line["tokens"]) for line in done.history]
    return lines, attached.state(), torch.get_rng_state()


@pytest.mark.parametrize("name", METHODS_TRIED)
def test_no_bit_of_a_run_is_another(name: str) -> None:
    tried, plain = (trained(base(), METHODS[name](**METHODS_TRIED[name]), measure=each) for each in (True, False))
    assert tried[0] == plain[0]
    assert all(torch.equal(plain[1][key], tensor) for key, tensor in tried[1].items())
    assert torch.equal(tried[2], plain[2]), "the global generator is where it was"


def test_nor_where_the_base_s_own_dropout_draws_from_the_global_generator() -> None:
    tried, plain = (trained(gpt2(), lora(dropout=0.0), base_dropout=True, measure=each) for each in (True, False))
    assert tried[0] == plain[0]
    assert torch.equal(tried[2], plain[2])


class Stopping(CausalLanguageModelling):
    """Ends as a process does that is killed while it makes a batch."""

    def units(self, batch: Any) -> int:
        LEFT.pop()
        return super().units(batch)


LEFT: list[int] = []


def test_a_resumed_run_is_tried_again_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    config = TrainConfig(steps=6, rows_per_step=6, learning_rate=1e-2, checkpoint_every=2)

    def run(folder: str, batches: int, resume: bool = False) -> dict[str, torch.Tensor]:
        LEFT[:] = range(batches)
        attached = attach(base(), lora(), seed=1)
        fit(attached, Stopping(), dataset(), None, config, folder=tmp_path / folder, resume=resume)
        return attached.state()

    with pytest.raises(IndexError):
        run("cut", 5)
    whole, cut = run("whole", 100), run("cut", 100, resume=True)
    assert all(torch.equal(whole[key], cut[key]) for key in whole)


def test_the_heaviest_micro_batch_is_found_among_all_of_a_pass() -> None:
    rows = dataset(60, seed=3)
    config = TrainConfig(epochs=1, rows_per_step=7, micro_batch_tokens=40)
    room = Room.of(config, rows, reporter=Quiet())
    with trying(attach(base(), lora()), CausalLanguageModelling(), rows, None, config, room) as trainer:
        parts = [part for step in trainer.schedule for part in micro_batches(step, rows.lengths, 40)]
        most = max(int(rows.lengths[list(part)].sum()) for part in parts)
        step, found = heaviest(trainer.schedule, trainer.parts, lambda part: int(rows.lengths[list(part)].sum()))
    assert found in micro_batches(trainer.schedule[step - 1], rows.lengths, 40)
    assert int(rows.lengths[list(found)].sum()) == most


def test_what_the_forecast_has_no_room_for_is_refused_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "machine_of", lambda model: Machine("a small machine", "cpu", 1_000_000))
    config = TrainConfig(steps=3, rows_per_step=6)
    with pytest.raises(NoRoomError, match=r"does not fit: a single row of 16 tokens .* of a small machine") as caught:
        fit(attach(base(), lora()), CausalLanguageModelling(), dataset(), None, config, folder=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "metrics.jsonl").read_text()
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))
    done = fit(
        attach(base(), lora()), CausalLanguageModelling(), dataset(), None, config.model_copy(update={"measure": False})
    )
    assert done.status == "finished", "measure: false tries it nevertheless"


def test_where_memory_runs_out_the_first_step_is_taken_in_smaller_parts_already() -> None:
    task, tried = CausalLanguageModelling(), []
    real = task.loss

    def loss(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        tried.append(batch.layout.total)
        if batch.layout.total > 40:
            raise MemoryError
        return real(model, batch)

    object.__setattr__(task, "loss", loss)
    told = Notes()
    fit(attach(base(), lora()), task, dataset(), None, TrainConfig(steps=2, rows_per_step=6), reporter=told)
    refused = [tokens for tokens in tried if tokens > 40]
    assert tried[: len(refused)] == refused, "only the rehearsal finds it out"
    assert any("fits" in note for note in told.notes)


def test_the_base_is_scored_after_the_rehearsal() -> None:
    told, order = Notes(), []

    def scored() -> dict[str, float]:
        order.extend(told.notes)
        return {"loss": 1.0}

    config = TrainConfig(steps=2, rows_per_step=6)
    fit(attach(base(), lora()), CausalLanguageModelling(), dataset(), dataset(2), config, reporter=told, before=scored)
    assert any("the heaviest micro-batch" in note for note in order)
