"""LoRA on a convolution and on experts, in plain loops, from Hu et al. 2021, arXiv:2106.09685, equation 3.

Convolution     y[o, p] = bias[o] + sum_(c, k) W[o, c, k] x[g C + c, stride p + dilation k - before]
                          + s sum_j B[o, j] sum_(c, k) A[j, c, k] d[g C + c, the same place]
o is of group g = o // (outputs a group); C channels a group; d is x, dropped.  What lies outside x is as `mode` says.
Experts         A (r E, d_in), B (d_out, r E): the pair of expert e is A[e r + j] and B[:, j E + e].

Numbers in and out are nested lists.
"""

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

Place = tuple[int, ...]
OUTSIDE: dict[str, Callable[[int, int], int | None]] = {
    "zeros": lambda place, size: place if 0 <= place < size else None,
    "replicate": lambda place, size: min(max(place, 0), size - 1),
    "circular": lambda place, size: place % size,
    "reflect": lambda place, size: -place if place < 0 else 2 * (size - 1) - place if place >= size else place,
}


def sizes(nested: Any) -> Place:
    return (len(nested), *sizes(nested[0])) if isinstance(nested, list) else ()


def at(nested: Any, place: Sequence[int]) -> float:
    for index in place:
        nested = nested[index]
    return nested


def read(x: Any, weight: Any, first: int, places: Place, dilation: Place, mode: str) -> float:
    """sum over c and k of weight[c, k] x[first + c, places + dilation k]"""
    space, (channels, *kernel) = sizes(x)[1:], sizes(weight)
    terms = []
    for c in range(channels):
        for k in product(*map(range, kernel)):
            seen = [
                OUTSIDE[mode](place + step * tap, size)
                for place, step, tap, size in zip(places, dilation, k, space, strict=True)
            ]
            if None not in seen:
                terms.append(at(weight, (c, *k)) * at(x, (first + c, *seen)))  # type: ignore[arg-type]
    return math.fsum(terms)


def lora_conv(
    x: Any,
    W: Any,
    bias: list[float],
    A: Any,
    B: list[list[float]],
    s: float,
    *,
    stride: Place,
    before: Place,
    behind: Place,
    dilation: Place,
    groups: int,
    mode: str,
    dropped: Any = None,
) -> dict[Place, float]:
    """One image x (channels, *space) -> {(o, *p): y}; `before` and `behind` are what is padded."""
    dropped = x if dropped is None else dropped
    d_out, channels, *kernel = sizes(W)
    shape = [
        (size + b + a - d * (k - 1) - 1) // step + 1
        for size, b, a, d, k, step in zip(sizes(x)[1:], before, behind, dilation, kernel, stride, strict=True)
    ]
    y: dict[Place, float] = {}
    for o in range(d_out):
        first = channels * (o // (d_out // groups))
        for p in product(*map(range, shape)):
            places = tuple(step * q - b for step, q, b in zip(stride, p, before, strict=True))
            middle = [read(dropped, A[j], first, places, dilation, mode) for j in range(len(A))]
            update = math.fsum(B[o][j] * middle[j] for j in range(len(A)))
            y[o, *p] = bias[o] + read(x, W[o], first, places, dilation, mode) + s * update
    return y


def expert_weight(e: int, W: Any, A: list[list[float]], B: list[list[float]], s: float) -> list[list[float]]:
    """W (E, d_out, d_in) -> W'[e]"""
    experts, d_out, d_in = sizes(W)
    r = len(A) // experts
    return [
        [W[e][o][i] + s * math.fsum(B[o][j * experts + e] * A[e * r + j][i] for j in range(r)) for i in range(d_in)]
        for o in range(d_out)
    ]
