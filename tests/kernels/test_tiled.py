"""Linears in C on many rows: the products, gains and gradients of the definition, rounded once, and no row depends on
its company.

Sums are made in float32.  What is rounded to bfloat16 on the way to one number, half an eps each: a middle, its scale,
W or B times the gain, the gain itself, the sum, and what the gain makes of it; relative to the same sums of sizes.
"""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_siblings import draw, each_alone, of_type, sized, trained, values
from torch import Tensor

from lorica.kernels import Branch, DenseWeight, LowRank, TiledWeight, is_native, quantised, siblings, tiled_linear
from lorica.kernels.native import linears as native
from lorica.kernels.tiled import FEW_ROWS, fits
from lorica.models import decoder

BF16 = torch.bfloat16
NATIVE = is_native("linears", torch.zeros(1, dtype=BF16))
pytestmark = pytest.mark.skipif(not NATIVE, reason="no kernels in C for this processor")
ROUNDINGS = 6
MANY = [(FEW_ROWS + 1, 32, (32,), 1), (333, 64, (160, 32), 40), (200, 96, (32, 64, 32), 8), (256, 32, (64,), 33)]
DEEP = [(140, 1536, (576,), 8), (140, 576, (1408, 64), 40), (140, 1536, (96,), 8), (140, 96, (1408, 64), 40)]
SHAPES = [(1, 32, (32,), 1), (64, 96, (32, 64, 32), 8), *MANY, *DEEP]
"""T, K, N of each, r; up to FEW_ROWS rows the low-rank products are torch's.  With tiles, deep ones are met in pieces,
one forward and one in the gradient of the input; the first two are also laid out in parts, by up to two threads."""
KINDS = ["plain", "gain", "gain and bias", "one without"]


def branches_of(K: int, widths: Sequence[int], r: int, kind: str) -> list[Branch]:
    found = []
    for n, N in enumerate(widths):
        bias = draw(N, seed=n) if kind == "gain and bias" else None
        gain = 1 + 0.3 * draw(N, seed=10 + n) if kind.startswith("gain") else None
        A, B = draw(r + n, K, seed=20 + n), draw(N, r + n, seed=30 + n)
        low_rank = None if kind == "one without" and n == 1 else LowRank(A=A, B=B, scale=2.5, base=gain, output=gain)
        found.append(Branch(DenseWeight(draw(N, K, seed=40 + n)), bias, low_rank))
    return found


def tiled(given: Branch) -> Branch:
    """In bfloat16, its gain in float32, as a method trains it."""
    low_rank = given.low_rank
    if low_rank is not None:
        A, B = low_rank.A.to(BF16), low_rank.B.to(BF16)
        gain = None if low_rank.output is None else low_rank.output.float()
        low_rank = trained(replace(low_rank, A=A, B=B, base=gain, output=gain))
    bias = None if given.bias is None else given.bias.to(BF16)
    return Branch(TiledWeight(given.weight.stored.to(BF16)), bias, low_rank)  # type: ignore[attr-defined]


def worst(x: Tensor, given: Sequence[Branch]) -> float:
    """The largest error in units of its bound."""
    narrow, exact = x.to(BF16), torch.float64
    made = [tiled(each) for each in given]
    wide = [of_type(Branch(DenseWeight(b.weight.dense()), b.bias, b.low_rank), exact) for b in made]
    got = values(siblings, narrow, made)
    wanted = values(each_alone, narrow.to(exact), wide)
    sizes = values(each_alone, narrow.to(exact).abs(), [sized(b) for b in wide], absolute=True)
    longest = max(len(x), x.shape[1], sum(len(b.weight.dense()) for b in made))
    limit = ROUNDINGS * torch.finfo(BF16).eps / 2 + 3 * longest * torch.finfo(torch.float32).eps
    return max(
        float(((g.double() - w).abs() / (limit * s.abs() + 1e-300)).max())
        for g, w, s in zip(got, wanted, sizes, strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_gradients_are_those_of_the_definition(shape: Any, kind: str) -> None:
    T, K, widths, r = shape
    error = worst(draw(T, K, seed=1), branches_of(K, widths, r, kind))
    assert error <= 1, f"{error:.2f} times the bound"


@pytest.mark.parametrize("shape", [*MANY, *DEEP], ids=str)
def test_a_product_is_rounded_once(shape: Any) -> None:
    """Float32 sums of K products err by K eps of float32; y is then the nearest bfloat16, half an eps away."""
    T, K, widths, r = shape
    x, given = draw(T, K, seed=1), [tiled(each) for each in branches_of(K, widths, r, "plain")]
    for y, b in zip(siblings(x.to(BF16), given), given, strict=True):
        assert b.low_rank is not None
        W, A, B = (part.detach().double() for part in (b.weight.dense(), b.low_rank.A, b.low_rank.B))
        wide = x.to(BF16).double()
        middle = (x.to(BF16).float() @ b.low_rank.A.detach().float().T).to(BF16).double()
        exact = wide @ W.T + 2.5 * middle @ B.T
        sizes = wide.abs() @ W.abs().T + 2.5 * middle.abs() @ B.abs().T
        # a middle that is a tie of two bfloat16 may be rounded to the other: one eps of it
        ties = 2.5 * torch.finfo(BF16).eps * (middle.abs() @ B.abs().T)
        allowed = torch.finfo(BF16).eps / 2 * exact.abs() + (K + len(A)) * torch.finfo(torch.float32).eps * sizes + ties
        assert bool(((y.double() - exact).abs() <= allowed).all())


@pytest.mark.parametrize("kind", ["plain", "gain"])
def test_what_changes_nothing_leaves_the_base_to_the_bit(kind: str) -> None:
    for T in (1, FEW_ROWS, FEW_ROWS + 1, 300):
        x = draw(T, 64, seed=1).to(BF16)
        given = []
        for each in branches_of(64, (96, 32), 8, kind):
            low_rank = each.low_rank
            assert low_rank is not None
            gain = None if low_rank.output is None else torch.ones_like(low_rank.output)
            still = replace(low_rank, B=torch.zeros_like(low_rank.B), base=gain, output=gain)
            given.append(tiled(Branch(each.weight, each.bias, still)))
        for y, b in zip(siblings(x, given), given, strict=True):
            assert torch.equal(y, tiled_linear(x, b.weight.dense(), b.bias))


def test_a_row_is_the_same_to_the_bit_in_any_company_and_under_any_number_of_threads() -> None:
    x, W, bias = draw(700, 96, seed=1).to(BF16), draw(192, 96, seed=2).to(BF16), draw(192, seed=3).to(BF16)
    g = draw(700, 192, seed=4).to(BF16)
    whole, back = tiled_linear(x, W, bias), native.input_gradient((g,), (native.Linear(W),), None)[1]
    for begin, end in ((0, 1), (3, 20), (100, 100 + FEW_ROWS), (77, 77 + FEW_ROWS + 1), (1, 700)):
        assert torch.equal(tiled_linear(x[begin:end], W, bias), whole[begin:end])
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 4, 6, 16):
            torch.set_num_threads(threads)
            assert torch.equal(tiled_linear(x, W, bias), whole)
            assert torch.equal(native.input_gradient((g,), (native.Linear(W),), None)[1], back)
    finally:
        torch.set_num_threads(before)


def test_a_trained_weight_gets_its_gradient() -> None:
    x, W, bias = (draw(*size, seed=7).to(BF16).requires_grad_(True) for size in ((200, 64), (32, 64), (32,)))
    tiled_linear(x, W, bias).backward(g := draw(200, 32, seed=8).to(BF16))
    wide = [part.detach().double().requires_grad_(True) for part in (x, W, bias)]
    torch.nn.functional.linear(*wide).backward(g.double())
    terms = {0: 32, 1: 200, 2: 200}
    sizes = (g.double().abs() @ wide[1].abs(), g.double().abs().T @ wide[0].abs(), g.double().abs().sum(0))
    for n, (found, wanted) in enumerate(zip((x, W, bias), wide, strict=True)):
        assert found.grad is not None
        assert wanted.grad is not None
        limit = (terms[n] + 2) * torch.finfo(BF16).eps * sizes[n].detach()
        assert bool(((found.grad.double() - wanted.grad).abs() <= limit).all())


def test_weights_are_laid_out_a_piece_at_a_time() -> None:
    """Wider than what is laid out at once."""
    x, W = draw(150, 1024, seed=1).to(BF16), draw(8192, 1024, seed=2).to(BF16)
    for rows in (slice(0, 64), slice(8128, 8192)):
        assert torch.equal(tiled_linear(x, W, None)[:, rows], tiled_linear(x, W[rows].contiguous(), None))
    g = draw(150, 8192, seed=3).to(BF16)
    _, whole = native.input_gradient((g,), (native.Linear(W),), None)
    part = W[:, -64:].contiguous()
    assert torch.equal(whole[:, -64:], native.input_gradient((g,), (native.Linear(part),), None)[1])


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_come_one_at_a_time_give_the_same_bits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, given = draw(333, 64, seed=1).to(BF16), [tiled(each) for each in branches_of(64, (160, 32, 96), 8, kind)]
    together = values(siblings, x, given)
    monkeypatch.setattr(TiledWeight, "at_hand", property(lambda self: False))
    for found, wanted in zip(values(siblings, x, given), together, strict=True):
        assert torch.equal(found, wanted)


CODES = [("nf4", True), ("nf4", False), ("fp4", True), ("int8", False)]


def in_codes(given: Branch, form: Any, double: bool) -> tuple[Branch, Branch]:
    """The branch on a quantised weight, and on that weight as bitsandbytes makes it dense."""
    weight = quantised.quantised(given.weight.dense(), form, double)
    return replace(given, weight=weight), replace(given, weight=TiledWeight(weight.dense()))


@pytest.mark.parametrize(("form", "double"), CODES)
@pytest.mark.parametrize("shape", [(333, 64, (160, 32, 96), 8), *DEEP], ids=str)
def test_weights_in_codes_give_the_bits_of_the_dense_ones(shape: Any, form: str, double: bool, monkeypatch) -> None:
    """Together, one at a time, and with no product beside them; shifted levels are found."""
    T, K, widths, r = shape
    x = draw(T, K, seed=1).to(BF16)
    coded, dense = zip(
        *(in_codes(tiled(each), form, double) for each in branches_of(K, widths, r, "gain and bias")), strict=True
    )
    wanted = values(siblings, x, dense)
    assert all(torch.equal(*pair) for pair in zip(values(siblings, x, coded), wanted, strict=True))
    for one, other in zip(coded, dense, strict=True):
        assert torch.equal(one.weight.product(x, one.bias), other.weight.product(x, other.bias))
        g = draw(T, one.weight.shape[0], seed=2).to(BF16)
        assert torch.equal(one.weight.transposed_product(g), other.weight.transposed_product(g))
    monkeypatch.setattr(type(coded[0].weight), "at_hand", property(lambda self: False))
    assert all(torch.equal(*pair) for pair in zip(values(siblings, x, coded), wanted, strict=True))
    if form != "int8":
        shifted = quantised.levels_of(form).roll(1)  # type: ignore[arg-type]
        monkeypatch.setattr(quantised, "levels_of", lambda form: shifted)
        assert not torch.equal(coded[0].weight.product(x), dense[0].weight.product(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_the_default_type_of_torch_is_nothing_to_them(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x = draw(333, 64, seed=1).to(BF16)
    given = [tiled(each) for each in branches_of(64, (160, 32), 8, "gain")]
    monkeypatch.setattr(TiledWeight, "at_hand", property(lambda self: False))
    wanted = values(siblings, x, given)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        found = values(siblings, x, given)
    finally:
        torch.set_default_dtype(before)
    assert all(torch.equal(one, two) for one, two in zip(found, wanted, strict=True))


def test_tensors_of_any_strides_are_read_as_what_they_are() -> None:
    x, W, bias = draw(200, 64, seed=1).to(BF16), draw(96, 64, seed=2).to(BF16), draw(96, seed=3).to(BF16)
    A, B = draw(8, 64, seed=4).to(BF16), draw(96, 8, seed=5).to(BF16)
    turned = [part.T.contiguous().T for part in (W, A, B)]
    spread = torch.stack([bias, bias], 1)[:, 0]
    low_ranks = [LowRank(A=a, B=b, scale=2.0) for a, b in ((A, B), turned[1:])]
    plain, strided = Branch(TiledWeight(W), bias, low_ranks[0]), Branch(TiledWeight(turned[0]), spread, low_ranks[1])
    for rows in (x, x[:5]):
        assert torch.equal(siblings(rows, [strided])[0], siblings(rows, [plain])[0])
        assert torch.equal(tiled_linear(rows, turned[0], spread), tiled_linear(rows, W, bias))
    (whole,) = native.linears(x, [native.Linear(W, bias, B)], A).outputs
    assert torch.equal(native.linears(x, [native.Linear(turned[0], spread, turned[2])], turned[1]).outputs[0], whole)


def test_what_comes_out_may_be_written_into() -> None:
    x = draw(2, 100, 64, seed=1).to(BF16).requires_grad_(True)
    y = tiled_linear(x, draw(32, 64, seed=2).to(BF16), None)
    y[:, -1] += 1
    y.sum().backward()
    assert x.grad is not None


def test_what_does_not_fit_is_a_product_of_torch() -> None:
    for x, W in (
        (draw(3, 40, seed=1).to(BF16), draw(32, 40, seed=2).to(BF16)),
        (draw(3, 32, seed=1).to(BF16), draw(33, 32, seed=2).to(BF16)),
        (draw(3, 32, seed=1), draw(32, 32, seed=2)),
        (draw(0, 32, seed=1).to(BF16), draw(32, 32, seed=2).to(BF16)),
    ):
        assert not fits(x, TiledWeight(W))
        assert torch.equal(tiled_linear(x, W, None), torch.nn.functional.linear(x, W))


def test_the_decoder_family_is_made_of_them() -> None:
    assert "nn.Linear(" not in inspect.getsource(decoder)


@pytest.mark.parametrize("wrong", ["scale", "gain", "B"])
def test_a_wrong_kernel_is_caught(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = native.Linear.whole.fget  # type: ignore[attr-defined]

    def other(self: native.Linear) -> native.Linear:
        held = right(self)
        value = getattr(held, wrong)
        return held if value is None else replace(held, **{wrong: 2 * value})

    kind = "gain" if wrong == "gain" else "plain"
    assert worst(draw(200, 96, seed=1), branches_of(96, (32, 64), 8, kind)) <= 1
    monkeypatch.setattr(native.Linear, "whole", property(other))
    assert worst(draw(200, 96, seed=1), branches_of(96, (32, 64), 8, kind)) > 1
