"""Batches that are only scored are bounded as those that are learned from are: padding included where a model pads."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from campaign.tiny_run import base, lora
from lorica.adapter import attach
from lorica.data import Dataset, Example
from lorica.tasks import require_task
from lorica.tasks.dpo import Preferred
from lorica.train import TrainConfig, rehearsal
from lorica.train.loop import trying
from lorica.train.reporter import Quiet
from lorica.train.room import Room

LENGTHS = (2, 30, 3, 3, 2, 12, 2, 2, 5, 3, 28, 2)
MOST = 32


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=61, n_positions=32, n_embd=16, n_layer=1, n_head=2)).eval()


def example(length: int, row: int) -> Example:
    return Example(np.full(length, 7, np.int32), np.arange(length) > 0, row, f"row {row}")


def pair(length: int, row: int) -> Preferred:
    """Of two documents of half the length."""
    return Preferred(np.full(length, 7, np.int32), np.arange(length) % (length // 2) > 0, row, f"{row}", length // 2)


def of(examples: list[Any]) -> Dataset:
    return Dataset(tuple(examples), (), len(examples))


SINGLE = of([example(length, row) for row, length in enumerate(LENGTHS)])
PAIRS = of([pair(2 * length, row) for row, length in enumerate(LENGTHS)])


def computed(model: nn.Module, work: Any) -> list[tuple[int, int]]:
    """(rows, tokens of each, padding included) of every call."""
    shapes = []

    def seen(module: nn.Module, args: Any, kwargs: Any) -> None:
        shapes.append(tuple(kwargs["input_ids"].shape))

    hook = model.register_forward_pre_hook(seen, with_kwargs=True)
    work()
    hook.remove()
    return shapes


@pytest.mark.parametrize("work", ["causal_lm", "dpo"])
def test_a_batch_of_padded_rows_holds_what_was_asked_for_padding_included(work: str) -> None:
    model, task = gpt2(), require_task(work)
    if work == "causal_lm":
        shapes = computed(model, lambda: task.evaluate(model, SINGLE, micro_batch_tokens=MOST))
        alone, rows = 1, len(SINGLE)
    else:
        shapes = computed(model, lambda: task.compared(model, PAIRS, micro_batch_tokens=MOST))
        alone, rows = 2, 2 * len(PAIRS)
    assert sum(rows for rows, _ in shapes) == rows
    assert all(rows == alone or rows * length <= MOST for rows, length in shapes)
    assert any(rows > alone for rows, _ in shapes)


@pytest.mark.parametrize("model", [base, gpt2])
def test_the_evaluation_batch_that_is_measured_is_the_heaviest_that_is_scored(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, config = require_task("causal_lm"), TrainConfig(steps=1, rows_per_step=2, micro_batch_tokens=MOST)
    attached = attach(model(), lora())
    sizes = []
    batch = type(task).batch

    def seen(self: Any, examples: Any, **rest: Any) -> Any:
        made = batch(self, examples, **rest)
        lengths = list(map(len, examples))
        sizes.append(sum(lengths) if model is base else len(lengths) * max(lengths))
        return made

    monkeypatch.setattr(type(task), "batch", seen)
    task.evaluate(attached.model, SINGLE, micro_batch_tokens=MOST)
    scored = sizes.copy()
    room = Room.of(config, SINGLE, SINGLE, reporter=Quiet())
    with trying(attached, task, SINGLE, SINGLE, config, room) as trainer:
        measured = rehearsal._scored(trainer)
        assert measured is not None
        sizes.clear()
        task.evaluate(attached.model, measured, micro_batch_tokens=MOST)
    assert sizes == [max(scored)], "in one batch"
