"""A run of a method whose file is not what it trains resumes to the same bits: checkpoints keep all of it."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from campaign.tiny_run import base, dataset
from lorica.adapter import attach, load
from lorica.methods import LoRA, Prefix, PTuning, VeRA
from lorica.tasks import TASKS
from lorica.train import Quiet, TrainConfig, fit

CONFIG = TrainConfig(steps=6, rows_per_step=4, learning_rate=1e-2)


class Interrupting(Quiet):
    def on_step(self, record: Any) -> None:
        if record.step == 3:
            os.kill(os.getpid(), signal.SIGINT)


def run(folder: Path, method: Any, **options: Any) -> Any:
    attached = attach(base(), method)
    return attached, fit(attached, TASKS["causal_lm"], dataset(12), None, CONFIG, folder=folder, **options)


FOLDED = [Prefix(length=3, hidden=6), [LoRA(r=2), PTuning(length=3, hidden=5, encoder="lstm")]]
OF_A_PAIR = [VeRA(r=5), VeRA(r=5, save_projection=False)]


@pytest.mark.parametrize("method", [*FOLDED, *OF_A_PAIR], ids=["prefix", "lora+p-tuning", "vera", "vera-drawn-again"])
def test_an_interrupted_run_ends_in_the_same_bits(method: Any, tmp_path: Path) -> None:
    _, whole = run(tmp_path / "whole", method)
    _, part = run(tmp_path / "part", method, reporter=Interrupting())
    assert (part.status, part.steps) == ("interrupted", 3)
    attached, rest = run(tmp_path / "part", method, resume=True)
    assert rest.steps == 6
    saved, again = (load_file(Path(r.adapter) / "adapter_model.safetensors") for r in (whole, rest))
    assert saved.keys() == again.keys()
    assert all((saved[key] == again[key]).all() for key in saved)
    kept = load(base(), Path(rest.adapter)).trainable_parameters
    assert kept < attached.trainable_parameters if method in FOLDED else kept == attached.trainable_parameters
