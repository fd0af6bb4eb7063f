"""Products of few long rows with many, in C: each is read once, and all of one call are one waking of threads."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from lorica.errors import NoRoomError
from lorica.kernels.native.build import Function, address, library, whole


@dataclass(frozen=True, eq=False)
class Thin:
    """scale times left (R, T) right (T, N), each column times its gain (N,) float32, where there is one.  by_columns:
    (R, N) lies in memory column after column."""

    left: Tensor
    right: Tensor
    scale: float = 1.0
    gain: Tensor | None = None
    by_columns: bool = False

    @property
    def whole(self) -> "Thin":
        """With tensors that C can read; it holds them."""
        left, right = self.left.contiguous(), self.right.contiguous()
        return replace(self, left=left, right=right, gain=whole(self.gain))

    def room(self) -> Tensor:
        R, N = self.left.shape[0], self.right.shape[1]
        if self.by_columns:
            return self.right.new_empty(N, R, dtype=torch.float32).T
        return self.right.new_empty(R, N, dtype=torch.float32)


class _Task(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("L", "D", "out", "gain")),
        *((name, ctypes.c_int64) for name in ("R", "T", "N", "by_row", "by_column")),
        ("scale", ctypes.c_double),
    )


def thin_products(given: Sequence[Thin]) -> list[Tensor]:
    """Of bfloat16; sums are given as they are made, in float32."""
    held = [each.whole for each in given]
    outs = [each.room() for each in held]
    table = (_Task * len(held))(*map(_task, held, outs))
    if _function()(ctypes.addressof(table), len(table)):
        raise NoRoomError("thin products: out of memory")
    return outs


def _task(each: Thin, out: Tensor) -> _Task:
    left, right = each.left, each.right
    sizes = (*left.shape, right.shape[1], *out.stride())
    return _Task(*map(address, (left, right, out, each.gain)), *sizes, each.scale)


@cache
def _function() -> Function:
    return library().function("lorica_thin", 1, ctypes.c_int64)
