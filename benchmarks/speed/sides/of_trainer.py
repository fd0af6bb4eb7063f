"""PEFT under transformers' Trainer in bfloat16: rows in random order, grouped by length, or as they come.

`rows` a batch and `accumulate` batches a step; the step's loss is logged, and the gate is passed, at its end.
"""

import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks.speed.gate import Gate
from benchmarks.speed.lessons import STEPS, Lessons
from benchmarks.speed.sides.loop import padded
from benchmarks.speed.sides.of_peft import adapted
from benchmarks.speed.start import same_start

Row = Mapping[str, Any]


def run(order: Mapping[str, Any], gate: Gate) -> None:
    lessons = Lessons.read(order["lessons"])
    model = adapted(order)
    same_start((name, p) for name, p in model.named_parameters() if p.requires_grad)
    device = next(model.parameters()).device
    with torch.no_grad():
        probe = model.eval()(**padded(lessons.probe, device)).loss.item()
    ordered = order["sampling"] == "sequential"
    rows = [row for step in range(STEPS) for row in lessons.batch(step)] if ordered else lessons.rows
    train(
        model, [{"input_ids": row} for row in rows], lambda some: padded(some, torch.device("cpu")), order, gate, probe
    )


def train(
    model: Any,
    rows: Sequence[Row],
    collate: Callable[[Any], dict[str, Tensor]],
    order: Mapping[str, Any],
    gate: Gate,
    probe: float,
    keyed: Callable[[Sequence[Row]], Any] = lambda some: [row["input_ids"] for row in some],
) -> None:
    counts = deque[tuple[int, int, int]]()

    def counted(some: list[Row]) -> dict[str, Tensor]:
        batch = collate(keyed(some))
        counts.append((sum(len(row["input_ids"]) for row in some), batch["input_ids"].numel(), len(some)))
        return batch

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=arguments(order, folder),
            train_dataset=list(rows),  # pyright: ignore[reportArgumentType]
            data_collator=counted,  # pyright: ignore[reportArgumentType]
            callbacks=[AtTheGate(gate, counts, order.get("accumulate", 1))],
        )
        gate.ready(trainable=sum(p.numel() for p in model.parameters() if p.requires_grad), probe=probe)
        trainer.train()


def arguments(order: Mapping[str, Any], folder: str) -> TrainingArguments:
    return TrainingArguments(
        folder,
        max_steps=STEPS,
        per_device_train_batch_size=order["rows"],
        gradient_accumulation_steps=order.get("accumulate", 1),
        learning_rate=order["learning_rate"],
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        weight_decay=0.0,
        optim="adamw_torch_fused",
        bf16=bool(order.get("autocast", True)),
        train_sampling_strategy=order["sampling"],
        use_cpu=order.get("device", "cpu") == "cpu",
        gradient_checkpointing=False,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )


class AtTheGate(TrainerCallback):
    """counts: (real tokens, cells with padding, rows) of every batch made, which are some ahead of those learned."""

    def __init__(self, gate: Gate, counts: deque[tuple[int, int, int]], accumulate: int) -> None:
        self.gate, self.counts, self.accumulate = gate, counts, accumulate

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **more: Any) -> None:
        if not logs or "loss" not in logs:
            return
        made = [self.counts.popleft() for _ in range(self.accumulate)]
        tokens, cells, rows = map(sum, zip(*made, strict=True))
        self.gate.passed(loss=float(logs["loss"]), tokens=tokens, cells=cells, rows=rows)
