"""Lorica: `load_base`, `attach` and `fit` as anybody calls them; a reporter stands at the gate after each step."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

import lorica
from benchmarks.speed.gate import Gate
from benchmarks.speed.lessons import SEED, STEPS, Lessons
from benchmarks.speed.sides.loop import padded
from benchmarks.speed.start import same_start
from lorica.data import Dataset, Example
from lorica.train.records import StepRecord
from lorica.train.reporter import Quiet

METHODS = {"lora": lorica.LoRA, "dora": lorica.DoRA}


def run(order: Mapping[str, Any], gate: Gate) -> None:
    lessons = Lessons.read(order["lessons"])
    stored: dict[str, Any] = {"quantize": "nf4", "double_quant": True} if order.get("four_bit") else {}
    kind = order.get("dtype", "bfloat16")
    model = lorica.load_base(order["folder"], dtype=kind, device=order.get("device"), **stored)
    method = (
        lorica.Full() if order["method"] == "full" else METHODS[order["method"]](r=order["r"], alpha=order["alpha"])
    )
    attached = lorica.attach(model, method)
    filled = same_start(attached.named_parameters())
    gate.ready(
        filled=filled, trainable=attached.trainable_parameters, probe=probed(attached.eval().model, lessons.probe)
    )
    lorica.fit(
        attached,
        train=dataset(lessons.rows),
        steps=STEPS,
        rows_per_step=lessons.rows_per_step,
        tokens_per_step=lessons.tokens_per_step,
        learning_rate=order["learning_rate"],
        schedule="constant",
        warmup=0,
        seed=SEED,
        reporter=AtTheGate(gate),
        **order.get("settings", {}),
    )


class AtTheGate(Quiet):
    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def on_step(self, record: StepRecord) -> None:
        self.gate.passed(loss=record.loss, tokens=record.tokens)


@torch.no_grad()
def probed(model: Any, rows: Sequence[Sequence[int]]) -> float:
    """The mean loss before anything is learned."""
    return model(**padded(rows, next(model.parameters()).device)).loss.item()


def dataset(rows: Sequence[Sequence[int]]) -> Dataset:
    examples = [
        Example(np.array(ids, np.int32), np.arange(len(ids)) > 0, row, f"row {row}") for row, ids in enumerate(rows)
    ]
    return Dataset(tuple(examples), (), len(examples))
