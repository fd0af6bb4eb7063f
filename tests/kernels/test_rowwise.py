"""Linears of rows with adapters of their own: the definition in float64, and no bit of a row from its company."""

import random
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from lorica.kernels import DenseWeight, Factors, LowRank, RowBranch, Terms, rowwise
from lorica.kernels.native import library

NATIVE = pytest.param(
    torch.bfloat16, marks=pytest.mark.skipif(library().functions is None, reason=library().why), id="native"
)
TYPES = [NATIVE, torch.float32, torch.float64]
SHAPES = [(1, 2, 1), (3, 34, 33), (8, 576, 192), (16, 64, 96), (17, 96, 40), (64, 130, 31)]
"""Rows, d_in, d_out."""


def drawn(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


def adapters(d_in: int, d_out: int) -> list[LowRank]:
    """LoRA, DoRA, VeRA, one whose input is scaled, and one that moves the output alone."""
    g = torch.Generator().manual_seed(d_in)
    A, B = drawn(g, 3, d_in) / d_in**0.5, drawn(g, d_out, 3)
    gain = 1 + 0.3 * drawn(g, d_out)
    return [
        LowRank(A=A, B=B, scale=7 / 3),
        LowRank(A=A[:1], B=B[:, :1], scale=0.5, base=gain, output=gain),
        LowRank(A=A, B=B, scale=1.0, middle=drawn(g, 3), output=drawn(g, d_out)),
        LowRank(A=A[:2], B=B[:, :2], scale=2.0, input=drawn(g, d_in)),
        LowRank(A=A[:0], B=B[:, :0], scale=1.0, bias=drawn(g, d_out)),
    ]


def case(shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, RowBranch, list[LowRank]]:
    """Row i has none, one or two of the adapters."""
    rows, d_in, d_out = shape
    g = torch.Generator().manual_seed(rows)
    x, W, bias = drawn(g, rows, d_in).to(dtype), drawn(g, d_out, d_in).to(dtype), drawn(g, d_out).to(dtype)
    known = adapters(d_in, d_out)
    factors = [Factors.of(one, dtype) for one in known]
    taken = [(row, (row + turn) % len(known), 1.0 - 0.3 * turn) for row in range(rows) for turn in range(row % 3)]
    terms = Terms([t[0] for t in taken], [factors[t[1]] for t in taken], [t[2] for t in taken]) if taken else None
    return x, RowBranch(DenseWeight(W), bias, terms), [known[t[1]] for t in taken]


def definition(x: Tensor, branch: RowBranch) -> Tensor:
    """In float64, of the numbers that the factors hold."""
    wide = x.double()
    raw = wide @ branch.weight.dense().double().T
    y = raw + (0 if branch.bias is None else branch.bias.double())
    for row, f, weight in (
        zip(*(getattr(branch.terms, n) for n in ("rows", "factors", "weights")), strict=True) if branch.terms else ()
    ):
        delta = (f.middle.double() * (f.A.double() @ wide[row])) @ f.B.double()
        delta = delta if f.output is None else delta * f.output.double()
        delta = delta if f.base is None else delta + raw[row] * f.base.double()
        delta = delta if f.bias is None else delta + f.bias.double()
        y[row] += weight * delta
    return y


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_path_is_the_definition(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    x, branch, _ = case(shape, dtype)
    wanted = definition(x, branch)
    (rounded,), (wide,) = rowwise(x, [branch]), rowwise(x, [branch], widely=True)
    sums = torch.finfo(torch.promote_types(dtype, torch.float32)).eps * 4 * shape[1] ** 0.5
    # torch's own product of A x is rounded to the type of x; the kernel in C keeps it in float32
    largest = float(wanted.abs().max())
    assert float((wide.double() - wanted).abs().max()) <= sums * largest
    assert rounded.dtype == dtype
    assert float((rounded.double() - wanted).abs().max()) <= (sums + torch.finfo(dtype).eps / 2) * largest
    assert torch.equal(wide.to(dtype), rounded)


def test_factors_are_what_the_low_rank_says() -> None:
    for low_rank in adapters(34, 33):
        x = drawn(torch.Generator().manual_seed(2), 5, 34).double()
        W = drawn(torch.Generator().manual_seed(3), 33, 34).double()
        wide = LowRank(**{k: v.double() if isinstance(v, Tensor) else v for k, v in vars(low_rank).items()})
        gain = 0 if wide.base is None else wide.base - 1
        wanted = wide.delta(x) + gain * (x @ W.T)
        assert torch.allclose(Factors.of(wide, torch.float64).delta(x, x @ W.T), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", TYPES)
def test_no_row_depends_on_the_rows_beside_it(dtype: torch.dtype) -> None:
    draw = random.Random(3)
    x, branch, _ = case((40, 576, 200), dtype)
    (whole,) = rowwise(x, [branch], widely=True)
    for company in companies(draw, 40):
        (found,) = rowwise(x[company].contiguous(), [chosen(branch, company)], widely=True)
        assert torch.equal(found, whole[company])


def companies(draw: random.Random, rows: int) -> Iterator[list[int]]:
    yield from ([row] for row in range(rows))
    for size in (2, 5, 8, 15, 16, 17, 33):
        yield draw.sample(range(rows), size)


def chosen(branch: RowBranch, rows: list[int]) -> RowBranch:
    assert branch.terms
    every = list(zip(branch.terms.rows, branch.terms.factors, branch.terms.weights, strict=True))
    taken = [(place, f, weight) for place, row in enumerate(rows) for own, f, weight in every if own == row]
    terms = Terms(*map(list, zip(*taken, strict=True))) if taken else None
    return RowBranch(branch.weight, branch.bias, terms)


@pytest.mark.parametrize("dtype", TYPES)
def test_siblings_are_computed_as_each_alone(dtype: torch.dtype) -> None:
    x, one, _ = case((9, 64, 96), dtype)
    other = RowBranch(DenseWeight(one.weight.dense()[:33].contiguous()), None)
    together = rowwise(x, [one, other])
    assert torch.equal(together[0], rowwise(x, [one])[0])
    assert torch.equal(together[1], rowwise(x, [other])[0])


@pytest.mark.parametrize("dtype", [NATIVE])
def test_the_number_of_threads_changes_no_bit(dtype: torch.dtype) -> None:
    before, found = torch.get_num_threads(), []
    x, branch, _ = case((17, 96, 400), dtype)
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(rowwise(x, [branch])[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


@pytest.mark.parametrize("dtype", TYPES)
def test_an_adapter_on_the_wrong_row_is_caught(dtype: torch.dtype) -> None:
    x, branch, _ = case((8, 576, 192), dtype)
    assert branch.terms
    wrong = Terms([7 - row for row in branch.terms.rows][::-1], branch.terms.factors[::-1], branch.terms.weights[::-1])
    (found,) = rowwise(x, [RowBranch(branch.weight, branch.bias, wrong)])
    assert float((found.double() - definition(x, branch)).abs().max()) > 0.1
