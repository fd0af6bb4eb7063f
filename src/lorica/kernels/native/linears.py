"""Linears of one input on many rows, with low-rank products beside them, in C: one call forward, one for the gradient
of the input.

T tokens, K and N wide, r of one linear, R of all.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from lorica.errors import NoRoomError
from lorica.kernels.native.build import Function, address, library, whole

SIDE = 32
"""K and every N are multiples of it."""


@dataclass(frozen=True, eq=False)
class Codes:
    """W of `shape` (N, K) in fewer bits, made bfloat16 where it is laid out.

    codes uint8, two numbers a byte, each levels[code] (16,) times the scale of its `block` of the flattened W, a power
    of two from 32 on; or, without levels, codes int8 (N, K), times the scale of their row.  Scales are float32.
    """

    codes: Tensor
    scales: Tensor
    shape: tuple[int, ...]
    levels: Tensor | None = None
    block: int = 1

    def contiguous(self) -> "Codes":
        return replace(self, codes=self.codes.contiguous(), scales=self.scales.contiguous(), levels=whole(self.levels))


@dataclass(frozen=True, eq=False)
class Linear:
    """W (N, K), b (N,), B (N, r), all bfloat16, W perhaps in codes; gain (N,) float32; None where absent."""

    W: Tensor | Codes
    bias: Tensor | None = None
    B: Tensor | None = None
    gain: Tensor | None = None
    scale: float = 1.0

    @property
    def whole(self) -> "Linear":
        """With tensors that C can read; it holds them."""
        bias, B, gain = map(whole, (self.bias, self.B, self.gain))
        return Linear(self.W.contiguous(), bias, B, gain, self.scale)


@dataclass(frozen=True, eq=False)
class Made:
    """m^T (R, T); y (T, N) of each; z (T, N), the product before the gain, of those with one where it was asked for."""

    middles: Tensor
    outputs: list[Tensor]
    products: list[Tensor | None]


class _Branch(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("W", "bias", "B", "gain", "y", "z", "codes", "scales", "levels")),
        *((name, ctypes.c_int64) for name in ("N", "r", "block")),
        ("scale", ctypes.c_double),
    )


def linears(x: Tensor, given: Sequence[Linear], A: Tensor | None, *, with_products: bool = False) -> Made:
    """x (T, K), T > 0; A (R, K), the rows of each linear in their order."""
    x, rank = x.contiguous(), 0 if A is None else len(A)
    outputs = [x.new_empty(len(x), each.W.shape[0]) for each in given]
    products = [
        y.new_empty(y.shape) if with_products and each.gain is not None else None
        for each, y in zip(given, outputs, strict=True)
    ]
    m = x.new_empty(rank, len(x))
    _call(0, (x, A, m), given, outputs, products, (len(x), x.shape[1], rank))
    return Made(m, outputs, products)


def product_into(out: Tensor, x: Tensor, linear: Linear) -> Tensor:
    """x (T, K), T > 0 -> `out` (T, N), which becomes x W^T + b; both contiguous."""
    _call(0, (x, None, None), (linear,), (out,), (None,), (*x.shape, 0))
    return out


def input_gradient_into(out: Tensor, grad: Tensor, W: Tensor) -> Tensor:
    """dy (T, N) -> `out` (T, K), which becomes dy W; both contiguous."""
    _call(1, (None, None, out, None), (Linear(W),), (grad,), (None,), (*out.shape, 0))
    return out


def input_gradient(grads: Sequence[Tensor], given: Sequence[Linear], A: Tensor | None) -> tuple[Tensor, Tensor]:
    """dy (T, N) of each, after its gain -> the gradients of m^T (R, T) and of x (T, K)."""
    grads = [grad.contiguous() for grad in grads]
    tokens, width = len(grads[0]), given[0].W.shape[1]
    inner = grads[0].new_empty(0 if A is None else len(A), tokens)
    grad_x = grads[0].new_empty(tokens, width)
    _call(1, (A, inner, grad_x, None), given, grads, [None] * len(grads), (tokens, width, 0))
    return inner, grad_x


def input_gradient_in_turn(
    grads: Sequence[Tensor], given: Sequence[Callable[[], Linear]], A: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor]:
    """The same to the bit where each linear is made for its call alone; `A` of each.  Sums wait in float32."""
    tokens, inners = len(grads[0]), []
    sums = grad_x = None
    for number, (grad, made, own) in enumerate(zip(map(torch.Tensor.contiguous, grads), given, A, strict=True)):
        linear = made()
        width = linear.W.shape[1]
        if sums is None:
            sums = grad.new_empty(width * -(-tokens // SIDE) * SIDE, dtype=torch.float32)
        grad_x = grad.new_empty(tokens, width) if number == len(grads) - 1 else None
        inners.append(grad.new_empty(0 if own is None else len(own), tokens))
        _call(1, (own, inners[-1], grad_x, sums), (linear,), (grad,), (None,), (tokens, width, int(number > 0)))
    assert grad_x is not None
    return torch.cat(inners), grad_x


def _call(
    which: int,
    tensors: Sequence[Tensor | None],
    given: Sequence[Linear],
    ys: Sequence[Tensor],
    zs: Sequence[Tensor | None],
    sizes: Sequence[int],
) -> None:
    held, tensors = [each.whole for each in given], [*map(whole, tensors)]
    rows = (_row(*three) for three in zip(held, ys, zs, strict=True))
    table = (_Branch * len(held))(*rows)
    if _functions()[which](*map(address, tensors), ctypes.addressof(table), len(table), *sizes):
        raise NoRoomError("linears: out of memory")


def _row(linear: Linear, y: Tensor, z: Tensor | None) -> _Branch:
    W, B = linear.W, linear.B
    stored = (W, None, None, None) if isinstance(W, Tensor) else (None, W.codes, W.scales, W.levels)
    tensors = (stored[0], linear.bias, B, linear.gain, y, z, *stored[1:])
    block = 0 if isinstance(W, Tensor) else W.block.bit_length() - 1
    return _Branch(*map(address, tensors), W.shape[0], 0 if B is None else B.shape[1], block, linear.scale)


@cache
def _functions() -> tuple[Function, Function]:
    return (
        library().function("lorica_linears", 4, *[ctypes.c_int64] * 4),
        library().function("lorica_linears_backward", 5, *[ctypes.c_int64] * 4),
    )
