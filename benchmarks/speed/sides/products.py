"""The rate of the best bfloat16 matrix product: a sweep of shapes, those of the bench among them, by the library and,
on a CPU, by our own kernels, since a share of a peak that we go beyond would say nothing.

A step of this side is one sweep: operations a second of each product, from the quickest of some tries.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn.functional import linear

from benchmarks.speed.gate import Gate
from lorica.kernels.tiled import TiledWeight

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
        rate, by = max(rates)
        gate.passed(loss=None, tokens=0, gflops=round(rate, 1), shape=shapes[rates.index((rate, by))], by=by)


def _operands(rows: int, d_in: int, d_out: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    x, w = torch.randn(rows, d_in, generator=draw), torch.randn(d_out, d_in, generator=draw)
    return x.to(device, torch.bfloat16), w.to(device, torch.bfloat16)


def _rate(x: torch.Tensor, w: torch.Tensor) -> tuple[float, str]:
    """The quickest, and whose it is: with the weight as it lies, or (the gradient of the input) turned."""
    weight, turned = TiledWeight(w), w.t().contiguous()
    theirs = (lambda: linear(x, w), lambda: torch.mm(x, turned))
    ours = (lambda: weight.product(x), lambda: TiledWeight(turned).transposed_product(x))
    seconds = {"the library": min(_seconds(made) for made in theirs * TRIES)}
    if not x.is_cuda:
        seconds["lorica"] = min(_seconds(made) for made in ours * TRIES)
    by = min(seconds, key=lambda name: seconds[name])
    return 2 * x.shape[0] * w.numel() / seconds[by] / 1e9, by


def _seconds(made: Callable[[], torch.Tensor]) -> float:
    began = time.perf_counter()
    if made().is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began
