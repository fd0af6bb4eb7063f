"""The rate of the best bfloat16 matrix product: a sweep of shapes, those of the bench among them, by the library and,
on a CPU, by our own kernels, since a share of a peak that we go beyond would say nothing; where no instruction takes
bfloat16, the library's are in float32.

A step of this side is one sweep: operations a second of each product, from the quickest of some tries; and those of the
quickest product made over and over for about as long as a step of training, since a processor's clock is not the same
in a burst and under load.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch.nn.functional import linear

from benchmarks.speed.gate import Gate
from lorica.kernels.tiled import TiledWeight

Product = Callable[[], torch.Tensor]
TRIES = 4
HELD_S = 4.0
HOPELESS = 2
"""Times the quickest: what takes so long at first is not tried again."""
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


class Rate(NamedTuple):
    """Of the quickest way to make a product: 10^9 operations a second, seconds of its best try, whose it is."""

    gflops: float
    seconds: float
    by: str
    made: Product


def run(order: Mapping[str, Any], gate: Gate) -> None:
    device = order.get("device", "cpu")
    shapes = order.get("shapes", SHAPES)
    operands = [_operands(rows, d_in, d_out, device) for rows, d_in, d_out in shapes]
    widely = bool(order.get("float32"))
    gate.ready()
    while True:
        rates = [_quickest(x, w, widely) for x, w in operands]
        best = max(rates, key=lambda rate: rate.gflops)
        held = _held(best, order.get("held_s", HELD_S))
        gate.passed(
            loss=None,
            tokens=0,
            gflops=round(best.gflops, 1),
            held_gflops=round(held, 1),
            shape=shapes[rates.index(best)],
            by=best.by,
        )


def _operands(rows: int, d_in: int, d_out: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    x, w = torch.randn(rows, d_in, generator=draw), torch.randn(d_out, d_in, generator=draw)
    return x.to(device, torch.bfloat16), w.to(device, torch.bfloat16)


def _quickest(x: torch.Tensor, w: torch.Tensor, widely: bool) -> Rate:
    ways = {"the library in float32": _theirs(x.float(), w.float())} if widely else {"the library": _theirs(x, w)}
    if not x.is_cuda:
        ways["lorica"] = _ours(x, w)
    first = [(_seconds(made), by, made) for by, found in ways.items() for made in found]
    quick = [way for way in first if way[0] < HOPELESS * min(first, key=lambda way: way[0])[0]]
    again = [(_seconds(made), by, made) for _, by, made in quick * (TRIES - 1)]
    seconds, by, made = min(again, key=lambda way: way[0])
    return Rate(2e-9 * x.shape[0] * w.numel() / seconds, seconds, by, made)


def _held(best: Rate, least: float) -> float:
    """Its rate where it is made for at least so many seconds."""
    count, taken = 0, 0.0
    while taken < least:
        count, taken = count + 1, taken + _seconds(best.made)
    return best.gflops * best.seconds * count / taken


def _theirs(x: torch.Tensor, w: torch.Tensor) -> tuple[Product, Product]:
    """With the weight as it lies, and (the gradient of the input) turned."""
    turned = w.t().contiguous()
    return lambda: linear(x, w), lambda: torch.mm(x, turned)


def _ours(x: torch.Tensor, w: torch.Tensor) -> tuple[Product, Product]:
    weight, turned = TiledWeight(w), TiledWeight(w.t().contiguous())
    return lambda: weight.product(x), lambda: turned.transposed_product(x)


def _seconds(made: Product) -> float:
    began = time.perf_counter()
    if made().is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began
