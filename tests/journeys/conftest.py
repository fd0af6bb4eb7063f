"""A tiny Llama on the disk and some rows, made once for all journeys."""

import json
from pathlib import Path

import pytest

from campaign import tiny_base

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base/`, `train.jsonl`, `eval.jsonl` and `count.yaml`, as a user's working directory."""
    folder = tmp_path_factory.mktemp("journey")
    tiny_base.write(folder / "base", layers=2)
    rows = [{"prompt": f"after {WORDS[n]}: ", "completion": WORDS[n + 1]} for n in range(10)]
    write_rows(folder / "train.jsonl", rows)
    write_rows(folder / "eval.jsonl", rows[2:5])
    (folder / "count.yaml").write_text(RECIPE)
    return folder


RECIPE = """\
model: ./base
method: {name: lora, r: 4, alpha: 12, dropout: 0.1}
data: {train: train.jsonl, eval: eval.jsonl}
train: {steps: 12, rows_per_step: 10, learning_rate: 1e-2, evaluate_every: 4, checkpoint_every: 3, warmup: 2}
output: runs/count
"""


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
