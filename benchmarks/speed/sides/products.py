"""The rate of the best bfloat16 matrix product: a sweep of shapes, those of the bench among them.

A step of this side is one sweep: operations a second of each product, from the quickest of some tries.
"""

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.functional import linear

from benchmarks.speed.gate import Gate

TRIES = 4
SHAPES = [
    (1024, 1024, 1024),
    (2048, 2048, 2048),
    (4096, 4096, 4096),
    (2048, 576, 576),
    (2048, 576, 960),
    (2048, 576, 1536),
    (2048, 576, 3072),
    (2048, 1536, 576),
    (8192, 576, 3072),
    (8192, 1536, 576),
    (512, 576, 49152),
    (2048, 4096, 1024),
    (1024, 4096, 4096),
]
"""rows, inputs, outputs"""


def run(order: Mapping[str, Any], gate: Gate) -> None:
    device = order.get("device", "cpu")
    shapes = order.get("shapes", SHAPES)
    operands = [_operands(rows, d_in, d_out, device) for rows, d_in, d_out in shapes]
    gate.ready()
    while True:
        rates = [_rate(x, w) for x, w in operands]
        best = max(rates)
        gate.passed(loss=None, tokens=0, gflops=round(best, 1), shape=shapes[rates.index(best)])


def _operands(rows: int, d_in: int, d_out: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    x, w = torch.randn(rows, d_in, generator=draw), torch.randn(d_out, d_in, generator=draw)
    return x.to(device, torch.bfloat16), w.to(device, torch.bfloat16)


def _rate(x: torch.Tensor, w: torch.Tensor) -> float:
    seconds = min(min(_seconds(x, w), _seconds(x, w, turned=True)) for _ in range(TRIES))
    return 2 * x.shape[0] * w.numel() / seconds / 1e9


def _seconds(x: torch.Tensor, w: torch.Tensor, turned: bool = False) -> float:
    """With the weight as it lies, or (the gradient of the input) turned."""
    product, right = (torch.mm, w.t().contiguous()) if turned else (linear, w)
    began = time.perf_counter()
    product(x, right)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began
