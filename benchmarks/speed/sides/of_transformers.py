"""Full fine-tuning by transformers in a plain loop: all in bfloat16, or float32 weights under autocast."""

from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.speed.gate import Gate
from benchmarks.speed.lessons import Lessons
from benchmarks.speed.sides.loop import learn


def run(order: Mapping[str, Any], gate: Gate) -> None:
    from transformers import AutoModelForCausalLM

    dtype = torch.float32 if order.get("autocast") else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(order["folder"], dtype=dtype, attn_implementation="sdpa")
    learn(model.to(order.get("device", "cpu")).train(), Lessons.read(order["lessons"]), order, gate)
