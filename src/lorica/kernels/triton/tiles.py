# pyright: reportMissingImports=false, reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
"""Tiles: the sizes that kernels are launched with, powers of two, and the type that their products read.

`INTERPRETED`: TRITON_INTERPRET=1 was set before triton was first imported, so kernels run on the CPU in numpy.
"""

from dataclasses import dataclass

import torch
import triton.language as tl
from torch import Tensor
from triton import knobs

INTERPRETED = bool(knobs.runtime.interpret)
LEAST = 16
"""The smallest side of a product that tensor cores take."""
ELEMENTS = 4096
"""Elements of a tile whose rows are worked on one by one."""

TYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One product: `rows` x `columns` of the result, `inner` of the sum at a time."""

    rows: int
    columns: int
    inner: int
    warps: int = 4
    stages: int = 3


def operand(x: Tensor) -> tl.dtype:
    """The type in which products read x.  The interpreter holds bfloat16 as bits and would multiply those; there it is
    float32, which holds the same values."""
    return tl.float32 if INTERPRETED else TYPES[x.dtype]


def covering(size: int, least: int = 1) -> int:
    """The power of two that covers `size`."""
    return max(least, 1 << (max(1, size) - 1).bit_length())


def rows_of(width: int) -> int:
    """Rows of this width, a power of two, in one tile."""
    return max(1, ELEMENTS // width)


def warps_of(elements: int) -> int:
    """So many that no thread has more than 32 elements of a tile, where there can be: more would spill registers."""
    return max(4, min(32, elements // 1024))


def parts(size: int, tile: int) -> int:
    """How many tiles cover `size`."""
    return -(-size // tile)
