"""A run of 200 steps follows the curve of transformers and PEFT as closely as their own runs in bfloat16 follow it."""

import json
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lorica.adapter import attach
from lorica.data import Dataset, Example
from lorica.methods import LoRA
from lorica.models.causal_lm import CausalLM
from lorica.tasks import TASKS
from lorica.train import TrainConfig, fit
from tiny_bases import filled

STEPS, RATE, R = 200, 2e-3, 4
LENGTHS = (19, 33, 7, 26, 40, 12)
SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 61}
CONFIG = LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **SIZES)
LINEARS = tuple(f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down"))
gated_mlp: Any = import_module("lorica.kernels.gated_mlp")
Curve = np.ndarray[Any, np.dtype[np.float64]]


def examples() -> list[Example]:
    draw = np.random.default_rng(5)
    rows = [draw.integers(0, 61, length).astype(np.int32) for length in LENGTHS]
    return [Example(row, np.arange(len(row)) > 2, number, f"rows[{number}]") for number, row in enumerate(rows)]


def base(dtype: torch.dtype) -> Any:
    """Weights that bfloat16 holds exactly; the frequencies of positions, which are no parameters, stay float32."""
    model = filled(LlamaForCausalLM(CONFIG))
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().to(dtype)
    return model


def ours(folder: Path, dtype: torch.dtype) -> tuple[Curve, Mapping[str, torch.Tensor]]:
    """The losses, and the adapter as it started."""
    model = CausalLM(CONFIG)
    model.load_state_dict(base(dtype).state_dict())
    attached = attach(model.to(dtype).eval(), LoRA(r=R, alpha=2 * R, target_modules=LINEARS, dropout=0.0), seed=3)
    began = attached.file().tensors
    settings: dict[str, Any] = {"steps": STEPS, "rows_per_step": len(LENGTHS), "schedule": "constant", "warmup": 0}
    rows = tuple(examples())
    config = TrainConfig(learning_rate=RATE, clip=None, **settings)
    fit(attached, TASKS["causal_lm"], Dataset(rows, (), len(rows)), None, config, folder=folder)
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return np.array([line["loss"] for line in lines if "loss" in line]), began


def theirs(began: Mapping[str, torch.Tensor], dtype: torch.dtype) -> Curve:
    """PEFT's adapter, whose own tensors are float32 in any case, under torch's AdamW."""
    config = peft.LoraConfig(r=R, lora_alpha=2 * R, lora_dropout=0.0, target_modules=[*LINEARS])
    model: Any = peft.get_peft_model(base(dtype), config)
    loaded = peft.set_peft_model_state_dict(model, {**began})
    assert not loaded.unexpected_keys
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    losses = []
    for _ in range(STEPS):
        loss = _loss(model)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return np.array(losses)


def _loss(model: nn.Module) -> torch.Tensor:
    """Of each learned token, in rows side by side: what is behind a token does not change it."""
    tokens = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.int64)
    targets = torch.full_like(tokens, -100)
    for row, each in enumerate(examples()):
        ids, learned = torch.from_numpy(each.input_ids).long(), torch.from_numpy(each.labels)
        tokens[row, : len(ids)] = ids
        targets[row, : len(ids) - 1] = ids.where(learned, -100)[1:]
    logits = model(input_ids=tokens).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def apart(a: Curve, b: Curve) -> float:
    """Root mean square of the difference over the run, in nats."""
    return float(np.sqrt(np.mean((a - b) ** 2)))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Curve, Curve]:
    """PEFT in float32 and in bfloat16, from the start that our adapter has."""
    _, began = ours(tmp_path_factory.mktemp("start"), torch.float32)
    return theirs(began, torch.float32), theirs(began, torch.bfloat16)


def test_in_float32_the_curve_is_theirs(tmp_path: Path, reference: tuple[Curve, Curve]) -> None:
    """Within one rounding of the first loss, over all 200 steps."""
    exact, _ = reference
    found, _ = ours(tmp_path / "run", torch.float32)
    assert found[-1] < 0.1 * found[0], "it learned nothing, so nothing was compared"
    assert apart(found, exact) < torch.finfo(torch.float32).eps * exact[0]


def test_in_bfloat16_the_curve_is_theirs_within_the_noise_of_bfloat16(
    tmp_path: Path, reference: tuple[Curve, Curve]
) -> None:
    """The noise is how far their own run in bfloat16 is from the exact one; roundings of our own go twice as far at
    most."""
    exact, noisy = reference
    found, _ = ours(tmp_path / "run", torch.bfloat16)
    assert apart(found, exact) < 2 * apart(noisy, exact)


def test_a_kernel_that_is_a_little_wrong_leaves_the_curve(
    tmp_path: Path, reference: tuple[Curve, Curve], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient that the MLP hands down is a twentieth too long."""
    exact, noisy = reference
    right = gated_mlp.gradients

    def longer(*given: Any, **options: Any) -> Any:
        found = right(*given, **options)
        return replace(found, x=1.05 * found.x)

    monkeypatch.setattr(gated_mlp, "gradients", longer)
    found, _ = ours(tmp_path / "run", torch.bfloat16)
    assert apart(found, exact) > 2 * apart(noisy, exact)
