"""The forecast of what comes and goes in a step, beside what the tensors of a run took in the pool."""

import gc
from typing import Any

import numpy as np
import pytest
import torch

import lorica
from benchmarks.made_bases import llama, made
from benchmarks.speed.sides.of_lorica import dataset
from lorica.budget.memory import Memory, Workload, memory_of
from lorica.kernels import pool
from lorica.methods import METHODS
from lorica.models.causal_lm import CausalLM

SHAPE: dict[str, Any] = {"layers": 6, "width": 256, "heads": 4, "keys": 4, "mlp": 704, "vocabulary": 2048}
WITH_A_HEAD: dict[str, Any] = {**SHAPE, "vocabulary": 16_384}
"""What is trained is mostly embedding and head."""
ROWS, LENGTH = 4, 256

pytestmark = pytest.mark.skipif(pool().lacking is not None, reason=f"no pool: {pool().lacking}")


def most_alive(shape: dict[str, Any], method: str, dtype: torch.dtype, recomputed: int | bool) -> int:
    gc.collect()  # adapters of other tests may live in the pool
    before = pool().held().live
    rows = np.random.default_rng(0).integers(3, 2000, (ROWS, LENGTH), dtype=np.int32)
    attached = lorica.attach(made(llama(**shape), dtype, None), METHODS[method]())
    settings: dict[str, Any] = {"rows_per_step": ROWS, "micro_batch_tokens": ROWS * LENGTH, "steps": 1, "warmup": 0}
    with pool().used():
        lorica.fit(attached, dataset(rows), gradient_checkpointing=recomputed, **settings)
        return pool().held().most - before


def forecast(shape: dict[str, Any], method: str, dtype: torch.dtype, recomputed: int | bool) -> Memory:
    with torch.device("meta"):
        model = CausalLM(llama(**shape)).to(dtype)
    count = None if recomputed is True else int(recomputed)
    work = Workload(tokens=ROWS * LENGTH, length=LENGTH, recomputed=count, accumulated=False)
    return memory_of(lorica.adapter.plan(model, METHODS[method]()), work, "cpu", decoder=True)


NARROW = [
    (method, torch.bfloat16, recomputed)
    for method in ("lora", "dora", "lora-fa", "vera", "full")
    for recomputed in (False, True, 3)
]
NARROW += [("hira", torch.bfloat16, False)]
WIDE = [(method, torch.float32, False) for method in ("lora", "dora", "full")]


@pytest.mark.parametrize(("method", "dtype", "recomputed"), [*NARROW, *WIDE])
def test_the_most_that_is_alive_is_the_forecasts(method: str, dtype: torch.dtype, recomputed: int | bool) -> None:
    agree(WITH_A_HEAD if method == "full" else SHAPE, method, dtype, recomputed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_tied_embedding_meets_the_gradient_of_the_head(dtype: torch.dtype) -> None:
    agree({**WITH_A_HEAD, "layers": 2, "tie_word_embeddings": True}, "full", dtype, False)


def agree(shape: dict[str, Any], method: str, dtype: torch.dtype, recomputed: int | bool) -> None:
    """Within 10 %, as a forecast of the whole has to be."""
    parts = forecast(shape, method, dtype, recomputed)
    expected = parts.activations + parts.logits + parts.buffers
    if method == "full":  # trained tensors of an adapter are too small for the pool
        expected += parts.adapter + parts.gradients + parts.optimizer
    assert expected == pytest.approx(most_alive(shape, method, dtype, recomputed), rel=0.1)
