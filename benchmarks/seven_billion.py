"""QLoRA on a base of Llama-2-7B's shape: three optimiser steps, and the most memory that the process held.

    python -m benchmarks.seven_billion [--layers N] [--result FILE]

The weights are noise: each is drawn, quantised to NF4 with double quantisation and let go of, so that the base is never
whole in 16 bit.  LoRA r=8 on all linears, 512 tokens a step, every block computed again in the backward pass.
"""

import json
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import lorica
from benchmarks.machine import machine
from benchmarks.made_bases import llama, made
from benchmarks.speed.gate import memory
from benchmarks.speed.sides.of_lorica import dataset
from lorica.data import Dataset
from lorica.models.quantised import Quantisation
from lorica.train import TrainConfig
from lorica.train.records import StepRecord
from lorica.train.reporter import Quiet

RESULT = Path(__file__).parent / "results" / "seven_billion.json"
CLAIM = "three QLoRA steps on a base of Llama-2-7B's shape hold less than 8 GB"
WANTED = 8_000_000_000
TOKENS, STEPS, R = 512, 3, 8


def base(layers: int) -> nn.Module:
    begun = time.perf_counter()

    def told(name: str) -> None:
        if name.endswith("down_proj.weight"):
            print(f"{name}, {time.perf_counter() - begun:.0f} s, {memory('VmRSS') / 1e9:.2f} GB", flush=True)

    config = llama(layers=layers, width=4096, heads=32, keys=32, mlp=11008, vocabulary=32000)
    return made(config, torch.bfloat16, Quantisation(form="nf4", double=True), told)


def rows() -> Dataset:
    return dataset(np.random.default_rng(0).integers(3, 32000, (STEPS, TOKENS), dtype=np.int32))


class Told(Quiet):
    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    def on_step(self, record: StepRecord) -> None:
        self.steps.append({"loss": record.loss, "seconds": round(record.seconds, 2)})
        print(f"{self.steps[-1]}, {memory('VmHWM') / 1e9:.2f} GB at most", flush=True)


def measured(layers: int) -> dict[str, Any]:
    before = memory("VmRSS")
    model = base(layers)
    loaded, loading = memory("VmRSS"), memory("VmHWM")
    settings: dict[str, Any] = {"rows_per_step": 1, "steps": STEPS, "gradient_checkpointing": True, "warmup": 0}
    method = lorica.LoRA(r=R)
    forecast = lorica.plan(model, method, train=TrainConfig(**settings, micro_batch_tokens=TOKENS))
    told = Told()
    lorica.fit(lorica.attach(model, method), rows(), reporter=told, micro_batch_tokens=TOKENS, **settings)
    peak = memory("VmHWM")
    return {
        "claim": CLAIM,
        "base": {"layers": layers, "parameters": forecast.plan.total_parameters, "stored": "nf4, doubly quantised"},
        "adapter": {"method": "lora", "r": R, "parameters": forecast.plan.trainable_parameters},
        "tokens": TOKENS,
        "resident_bytes": {"before": before, "base": loaded, "most while loading": loading, "most": peak},
        "forecast": forecast.memory.to_dict(),
        "forecast_over_measured": round(forecast.memory.peak / peak, 3),
        "wanted_bytes": WANTED,
        "met": peak < WANTED,
        "steps": told.steps,
    }


def main() -> None:
    parser = ArgumentParser(prog="python -m benchmarks.seven_billion", description=__doc__)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    found = {**measured(options.layers), "machine": machine()}
    options.result.write_text(json.dumps(found, indent=1) + "\n")
    print(options.result.read_text())


if __name__ == "__main__":
    main()
