"""all-MiniLM-L6-v2 learns whose docstring a text is: by Lorica, or by PEFT under transformers' Trainer.

Both learn the new head as well, from the same start, in bfloat16; the base's own dropout, which Lorica leaves off, is
off for both.  `rows` of the order's file are {text, label}.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.speed.gate import Gate
from benchmarks.speed.lessons import SEED, STEPS
from benchmarks.speed.start import same_start

PROBED = 32


def run(order: Mapping[str, Any], gate: Gate) -> None:
    rows = json.loads(Path(order["rows_file"]).read_text())
    labels = sorted({row["label"] for row in rows})
    (by_lorica if order["by"] == "lorica" else by_trainer)(order, gate, rows, labels)


def by_lorica(order: Mapping[str, Any], gate: Gate, rows: list[dict[str, str]], labels: list[str]) -> None:
    import lorica
    from benchmarks.speed.sides.of_lorica import METHODS
    from lorica.train.records import StepRecord
    from lorica.train.reporter import Quiet

    class AtTheGate(Quiet):
        def on_step(self, record: StepRecord) -> None:
            gate.passed(loss=record.loss, tokens=record.tokens, rows=record.label_tokens)

    task = {"name": "classification", "labels": labels}
    model = lorica.load_base(order["folder"], dtype="bfloat16", task=task)
    attached = lorica.attach(model, METHODS["lora"](r=order["r"], alpha=order["alpha"]))
    same_start(attached.named_parameters())
    probe = probed(attached.eval().model, encoded(order["folder"], rows[:PROBED], labels))
    gate.ready(trainable=attached.trainable_parameters, probe=probe)
    lorica.fit(
        attached,
        train=rows,
        max_length=order["max_length"],
        over_length="truncate",
        steps=STEPS,
        rows_per_step=order["rows"],
        learning_rate=order["learning_rate"],
        schedule="constant",
        warmup=0,
        seed=SEED,
        reporter=AtTheGate(),
        **order.get("settings", {}),
    )


def by_trainer(order: Mapping[str, Any], gate: Gate, rows: list[dict[str, str]], labels: list[str]) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    from benchmarks.speed.sides.of_trainer import train

    base = AutoModelForSequenceClassification.from_pretrained(
        order["folder"],
        num_labels=len(labels),
        dtype=torch.bfloat16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    config = LoraConfig(r=order["r"], lora_alpha=order["alpha"], target_modules="all-linear", task_type="SEQ_CLS")
    model = get_peft_model(base, config, autocast_adapter_dtype=order.get("adapter_dtype") != "base")
    same_start((name, p) for name, p in model.named_parameters() if p.requires_grad)
    examples = encoded(order["folder"], rows, labels, order["max_length"])
    probe = probed(model.eval(), examples[:PROBED])
    train(model, examples, side_by_side, order, gate, probe, keyed=lambda some: some)


def encoded(folder: str, rows: Sequence[Mapping[str, str]], labels: list[str], most: int = 128) -> list[dict[str, Any]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    number = {label: place for place, label in enumerate(labels)}
    ids = tokenizer([row["text"] for row in rows], truncation=True, max_length=most)["input_ids"]
    return [{"input_ids": each, "labels": number[row["label"]]} for each, row in zip(ids, rows, strict=True)]


def side_by_side(rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    longest = max(len(row["input_ids"]) for row in rows)
    tokens = np.zeros((len(rows), longest), np.int64)
    mask = np.zeros_like(tokens)
    for place, row in enumerate(rows):
        tokens[place, : len(row["input_ids"])] = row["input_ids"]
        mask[place, : len(row["input_ids"])] = 1
    labels = torch.tensor([row["labels"] for row in rows])
    return {"input_ids": torch.from_numpy(tokens), "attention_mask": torch.from_numpy(mask), "labels": labels}


@torch.no_grad()
def probed(model: Any, examples: Sequence[Mapping[str, Any]]) -> float:
    """The mean loss of the first rows before anything is learned."""
    batch = side_by_side(examples)
    labels = batch.pop("labels")
    return torch.nn.functional.cross_entropy(model(**batch).logits.float(), labels).item()
