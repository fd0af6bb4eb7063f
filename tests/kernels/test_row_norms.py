"""Norms by the Gram form against the dense sum in double precision; a wrong form is caught.

Each of the three sums is of products whose sizes add up to at most (|W| + |s B A|)^2 of a row, where the sizes of
`bound` stand for their entries; a sum of n rounded products is within n eps of it.
"""

import sys
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from lorica.kernels import DenseWeight, FrozenWeight, row_norms, row_squares
from lorica.kernels import row_norms as kernel
from lorica.kernels.row_norms import reference

SHAPES = [(1, 1, 1), (3, 7, 2), (16, 8, 4), (5, 33, 5), (40, 96, 8), (0, 4, 1), (6, 2, 3)]
"""d_out, d_in, r"""
TYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SCALE = -2.5


def made(shape: tuple[int, int, int], dtype: torch.dtype, transposed: bool) -> tuple[FrozenWeight, Tensor, Tensor]:
    """A weight of that type, factors as they are trained beside it."""
    d_out, d_in, r = shape
    generator = torch.Generator().manual_seed(d_in)
    W, A, B = (torch.randn(*size, generator=generator) for size in ((d_out, d_in), (r, d_in), (d_out, r)))
    wide = torch.promote_types(dtype, torch.float32)
    stored = W.to(dtype).T.contiguous() if transposed else W.to(dtype)
    return DenseWeight(stored, transposed), A.to(wide), B.to(wide)


def worst(norms: Callable[..., Tensor], weight: FrozenWeight, A: Tensor, B: Tensor) -> float:
    """The largest error of a squared norm in units of its bound."""
    found = norms(weight, row_squares(weight, A.dtype), A, B, SCALE).double()
    wide = DenseWeight(weight.dense().double())
    expected = reference(wide, A.double(), B.double(), SCALE)
    size = wide.dense().abs() + abs(SCALE) * B.double().abs() @ A.double().abs()
    limit = (2 * A.shape[1] + 2 * A.shape[0] + 8) * torch.finfo(A.dtype).eps * size.square().sum(1)
    ratio = (found.square() - expected.square()).abs() / limit
    return float(ratio.max()) if ratio.numel() else 0.0


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("shape", "transposed"), list(product(SHAPES, [False, True])), ids=str)
def test_norms_are_those_of_the_dense_sum(shape: tuple[int, int, int], transposed: bool, dtype: torch.dtype):
    error = worst(row_norms, *made(shape, dtype, transposed))
    assert error <= 1, f"{error:.1f} times the bound"


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_weight_is_widened_a_few_rows_at_a_time(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    arguments = made((40, 96, 8), dtype, False)
    whole = row_norms(arguments[0], row_squares(arguments[0], arguments[1].dtype), *arguments[1:], SCALE)
    monkeypatch.setattr(sys.modules["lorica.kernels.row_norms"], "PIECE", 200)
    parts = row_norms(arguments[0], row_squares(arguments[0], arguments[1].dtype), *arguments[1:], SCALE)
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=0)
    assert worst(row_norms, *arguments) <= 1


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_zero_B_gives_the_root_of_the_squares_to_the_bit(dtype: torch.dtype):
    weight, A, B = made((40, 96, 8), dtype, False)
    squares = row_squares(weight, A.dtype)
    assert torch.equal(row_norms(weight, squares, A, torch.zeros_like(B), SCALE), squares.sqrt())


def test_a_row_that_the_update_cancels_is_as_long_as_nothing():
    """Rounding would leave the root of a negative number in about half of the rows."""
    A, B = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)), torch.ones(64, 2)
    B[:, 1] = torch.linspace(-1, 1, 64)
    weight = DenseWeight(-SCALE * B @ A)
    norms = row_norms(weight, row_squares(weight), A, B, SCALE)
    assert norms.isfinite().all()
    assert (norms <= 1e-2 * weight.dense().norm(dim=1)).all()


def test_neither_a_gradient_nor_anything_of_the_weights_size_is_kept():
    weight, A, B = made((40, 96, 8), torch.float32, False)
    kept: list[Any] = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda t: t):
        norms = row_norms(weight, row_squares(weight), A.requires_grad_(True), B.requires_grad_(True), SCALE)
    assert not norms.requires_grad
    assert not kept


WRONG = {
    "sign": lambda w, q, A, B, s: kernel(w, q, A, B, -s),
    "no cross term": lambda w, q, A, B, s: (
        kernel(w, q, A, B, s).square() / 2 + kernel(w, q, A, B, -s).square() / 2
    ).sqrt(),
    "rounded B": lambda w, q, A, B, s: kernel(w, q, A, B.to(torch.float16), s),
    "of the columns": lambda w, q, A, B, s: reference(DenseWeight(w.dense().double()), A.double(), B.double(), s).flip(
        0
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_norm_is_caught(wrong: str):
    arguments = made((16, 8, 4), torch.float32, False)
    assert worst(row_norms, *arguments) <= 1
    assert worst(WRONG[wrong], *arguments) > 1
