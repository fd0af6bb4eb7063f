"""Gains of columns, lengths of rows and sums beside SwiGLU in C: torch's own path, and no bit from threads."""

import pytest
import torch
from torch import Tensor

from lorica.kernels import gain as kernel
from lorica.kernels.native import gain, library, row_norms, swiglu
from lorica.kernels.swiglu import swiglu_backward_ as definition

pytestmark = pytest.mark.skipif(library().functions is None, reason=library().why)

EPS = torch.finfo(torch.bfloat16).eps
SHAPES = [(1, 1), (3, 17), (300, 48), (129, 515)]


def drawn(rows: int, width: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(rows)
    grad, z, bias = (torch.randn(n, width, generator=generator).bfloat16() for n in (rows, rows, 1))
    return grad, z, bias[0], 1 + 0.3 * torch.randn(width, generator=generator)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_gain_and_its_gradients_are_torchs_in_float64(shape: tuple[int, int], with_bias: bool) -> None:
    grad, z, bias, c = drawn(*shape)
    b = bias if with_bias else None
    wide = [grad.double(), z.double(), None if b is None else b.double(), c.double()]
    found = [gain.gained(z, b, c), *gain.gained_backward(grad, z, b, c)]
    wanted = [kernel.gained(*wide[1:]), *kernel.gained_backward(*wide)]  # type: ignore[arg-type]
    # rounded once to bfloat16; the sum is float32 over the rows
    bounds = [EPS / 2, EPS / 2, shape[0] ** 0.5 * torch.finfo(torch.float32).eps * 4]
    for f, w, bound in zip(found, wanted, bounds, strict=True):
        assert float((f.double() - w).abs().max()) <= 1.01 * bound * float(w.abs().max())


def test_a_gain_of_one_leaves_the_product_to_the_bit() -> None:
    _, z, bias, c = drawn(40, 33)
    assert torch.equal(gain.gained(z, bias, torch.ones_like(c)), z)


@pytest.mark.parametrize("r", [1, 8, 11])
@pytest.mark.parametrize("shape", [(1, 5), (40, 576), (33, 130)], ids=str)
def test_lengths_are_float32s(shape: tuple[int, int], r: int) -> None:
    W, A, B = lengths_of(shape, r)
    wanted = (W.double() + 0.5 * B.double() @ A.double()).square().sum(1)
    found = row_norms.norms(W, W.float().square().sum(1), A, B, 0.5).double().square()
    sizes = (W.double().abs() + 0.5 * B.double().abs() @ A.double().abs()).square().sum(1)
    bound = (2 * shape[1] + 2 * r + 9) * torch.finfo(torch.float32).eps
    assert bool(((found - wanted).abs() <= bound * sizes).all())


def lengths_of(shape: tuple[int, int], r: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(r)
    W, A, B = (torch.randn(size, generator=generator) for size in (shape, (r, shape[1]), (shape[0], r)))
    return W.bfloat16(), A, B


def test_with_a_zero_B_they_are_the_roots_of_the_squares_to_the_bit() -> None:
    W, A, B = lengths_of((40, 576), 8)
    squares = W.float().square().sum(1)
    assert torch.equal(row_norms.norms(W, squares, A, torch.zeros_like(B), 2.0), squares.sqrt())


@pytest.mark.parametrize("shape", [(1, 5), (64, 96), (300, 130)], ids=str)
def test_sums_beside_the_gradients_of_swiglu_are_those_of_a_gain(shape: tuple[int, int]) -> None:
    grad, g, u = (torch.randn(shape, generator=torch.Generator().manual_seed(n)).bfloat16() for n in range(3))
    plain = swiglu.swiglu_backward_(grad.clone(), g, u)
    *found, sums = swiglu.swiglu_backward_summed_(grad.clone(), g, u)
    assert all(torch.equal(one, two) for one, two in zip(found, plain, strict=True))
    wide = [part.double() for part in (grad, g, u)]
    dg, du, _ = definition(*wide)
    for one, d, y in zip(sums, (dg, du), wide[1:], strict=True):
        bound = (shape[0] + 16) * torch.finfo(torch.float32).eps * (d * y).abs().sum(0)
        assert bool(((one.double() - (d * y).sum(0)).abs() <= bound).all())


def test_the_number_of_threads_changes_no_bit() -> None:
    grad, z, bias, c = drawn(700, 96)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append([*gain.gained_backward(grad, z, bias, c), *sums_of(z)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def sums_of(z: Tensor) -> list[Tensor]:
    """Of columns and of rows, of 700 by 96."""
    A, B = torch.ones(3, z.shape[1]), torch.ones(len(z), 3)
    *_, sums = swiglu.swiglu_backward_summed_(z.clone(), z, z)
    return [*sums, row_norms.norms(z, torch.ones(len(z)), A, B, 1.0)]


def test_a_gradient_without_its_bias_is_caught() -> None:
    grad, z, bias, c = drawn(300, 48)
    _, wanted = kernel.gained_backward(grad.double(), z.double(), bias.double(), c.double())
    _, wrong = gain.gained_backward(grad, z, None, c)
    assert float((wrong - wanted).abs().max()) > 1e-2 * float(wanted.abs().max())
