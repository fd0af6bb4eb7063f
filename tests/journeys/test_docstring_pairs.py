"""A real pretrained encoder, adapted in one's own loop and by transformers' Trainer, and read by PEFT afterwards."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docstring_pairs", ROOT / "examples" / "docstring_pairs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("by_trainer", [False, True], ids=["plain loop", "Trainer"])
def test_lora_on_minilm_learns_and_peft_reads_it(example: ModuleType, tmp_path: Path, by_trainer: bool) -> None:
    found = example.run(steps=2, judged=8, out=tmp_path, by_trainer=by_trainer)
    before, after = found["training_loss"]
    assert after < before
    assert found["same_embeddings_in_peft"] < 1e-5


def test_the_interval_of_a_rise_excludes_zero_only_when_there_is_one(example: ModuleType) -> None:
    random = np.random.default_rng(0)
    before, same = random.random(2000) < 0.7, random.random(2000) < 0.7
    better = before | (random.random(2000) < 0.3)
    low, high = example.interval(before, same)
    assert low < 0 < high
    assert example.interval(before, better)[0] > 0
