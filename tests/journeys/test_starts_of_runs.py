"""`lorica train` with starts that take time or data: found once, kept by every checkpoint."""

import shutil
from pathlib import Path
from typing import Any

import pytest

import lorica
from lorica.api import collecting
from lorica.methods.starts import LoftQ, PiSSA

STARTS = {"pissa": "pissa", "eva": {"name": "eva", "rho": 2.0}, "lora_ga": "lora_ga", "loftq": "loftq"}


def recipe(place: Path, output: Path, init: Any) -> lorica.Recipe:
    return lorica.Recipe(
        model={"source": str(place / "base"), "quantize": "nf4" if init == "loftq" else None},
        method={"name": "lora", "r": 3, "alpha": 8, "dropout": 0.1, "init": init},
        data=str(place / "train.jsonl"),
        train={"steps": 4, "rows_per_step": 5, "learning_rate": 1e-2, "warmup": 0, "checkpoint_every": 2},
        output=str(output),
    )


@pytest.mark.parametrize("init", STARTS.values(), ids=STARTS)
def test_a_resumed_run_goes_on_from_the_start_that_it_had(place: Path, tmp_path: Path, monkeypatch, init: Any):
    """To the bit, though neither data nor weights are read for it again."""
    lorica.train(recipe(place, tmp_path / "whole", init))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/adapter")
    shutil.rmtree(tmp_path / "cut/checkpoints/step-00000004")

    def again(*_: Any, **__: Any) -> None:
        raise AssertionError("the start was made again")

    monkeypatch.setattr(collecting, "statistics", again)
    monkeypatch.setattr(PiSSA, "found", again)
    monkeypatch.setattr(LoftQ, "found", again)
    run = lorica.train(recipe(place, tmp_path / "cut", init), resume=True)
    assert run.steps == 4
    whole, cut = (tmp_path / name / "adapter/adapter_model.safetensors" for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()
    assert lorica.verify(tmp_path / "cut/adapter", model=str(place / "base")).ok
