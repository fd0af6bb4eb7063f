"""The plain loop that PEFT's and transformers' sides share: one padded batch a step, clipped AdamW, no scheduler."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed.gate import Gate
from benchmarks.speed.lessons import Lessons

IGNORED = -100


def learn(model: nn.Module, lessons: Lessons, order: Mapping[str, Any], gate: Gate, **facts: Any) -> None:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = trained[0].device
    step = stepper(model, trained, order)
    gate.ready(trainable=sum(parameter.numel() for parameter in trained), **facts)
    for number in range(len(lessons.steps)):
        rows = lessons.batch(number)
        loss = step(padded(rows, device))
        gate.passed(loss=loss, tokens=sum(map(len, rows)))


def stepper(
    model: nn.Module, trained: Sequence[nn.Parameter], order: Mapping[str, Any]
) -> Callable[[dict[str, Tensor]], float]:
    optimizer = torch.optim.AdamW(trained, lr=order["learning_rate"], weight_decay=0.0, fused=True)
    called = torch.compile(model) if order.get("compile") else model
    device = trained[0].device.type

    def step(batch: dict[str, Tensor]) -> float:
        with torch.autocast(device, torch.bfloat16) if order.get("autocast") else nullcontext():
            loss = called(**batch, use_cache=False).loss
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> dict[str, Tensor]:
    """No mask where nothing is padded: attention is quicker without one."""
    longest = max(map(len, rows))
    tokens = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask = torch.zeros_like(tokens)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
    labels = tokens.masked_fill(mask == 0, IGNORED)
    masked = {} if bool(mask.all()) else {"attention_mask": mask}
    return {name: value.to(device) for name, value in {"input_ids": tokens, "labels": labels, **masked}.items()}
