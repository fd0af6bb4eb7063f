"""Linears of a few rows, each with low-rank products of its own, in C: W is read once for all of them."""

import ctypes
import struct
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lorica.errors import NoRoomError
from lorica.kernels.native.build import Function, address, library, whole

if TYPE_CHECKING:
    from lorica.kernels.rowwise import Factors, RowBranch, Terms

TERM = "qqd"
NONE = (0, 0)


def rowwise(x: Tensor, branches: Sequence["RowBranch"], widely: bool) -> list[Tensor]:
    """x (n, d_in) bfloat16, d_in even, and dense weights -> (n, d_out) of each branch."""
    x, made, held = x.contiguous(), [], []
    given: list[int] = []
    for branch in branches:
        W = branch.weight.as_read(torch.bfloat16).contiguous()
        y = x.new_empty(x.shape[0], W.shape[0], dtype=torch.float32 if widely else torch.bfloat16)
        terms, count = branch.terms.native if branch.terms else NONE
        bias = whole(branch.bias)
        given += (address(W), address(bias), address(y), terms, W.shape[0], count)
        made.append(y)
        held += [W, bias]
    linears = (ctypes.c_int64 * len(given))(*given)
    if _function()(x.data_ptr(), ctypes.addressof(linears), len(branches), x.shape[0], x.shape[1], widely):
        raise NoRoomError("linears of rows: out of memory")
    return made


def struct_of(factors: "Factors") -> Any:
    """What C reads of one adapter at one linear."""
    parts = (factors.A, factors.B, factors.middle, factors.output, factors.base, factors.bias)
    return (ctypes.c_int64 * 7)(*map(address, parts), len(factors.A))


def table_of(terms: "Terms") -> ctypes.Array[ctypes.c_char]:
    """What C reads of the terms of one linear."""
    rows = zip(terms.factors, terms.rows, terms.weights, strict=True)
    packed = [value for f, row, weight in rows for value in (ctypes.addressof(f.native), row, weight)]
    return ctypes.create_string_buffer(
        struct.pack(TERM * len(terms.rows), *packed), struct.calcsize(TERM) * len(terms.rows)
    )


@cache
def is_as_many() -> bool:
    """Whether a row's sums are those of linears of many rows, to the bit."""
    return bool(library().function("lorica_few_rows_as_many", 0)())


@cache
def _function() -> Function:
    return library().function("lorica_rowwise", 2, *[ctypes.c_int64] * 4)
