"""The gain of columns and the product of row lengths in C: torch's own path, and no bit from threads or company."""

import pytest
import torch
from torch import Tensor

from lorica.kernels import gain as kernel
from lorica.kernels.native import gain, library, row_norms

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
def test_the_wide_product_is_float32s(shape: tuple[int, int], r: int) -> None:
    generator = torch.Generator().manual_seed(r)
    W, A = torch.randn(shape, generator=generator).bfloat16(), torch.randn(r, shape[1], generator=generator)
    wanted = W.double() @ A.double().T
    bound = shape[1] ** 0.5 * torch.finfo(torch.float32).eps * 4
    assert float((row_norms.wide_product(W, A).double() - wanted).abs().max()) <= bound * float(wanted.abs().max())


def test_the_number_of_threads_changes_no_bit() -> None:
    grad, z, bias, c = drawn(700, 96)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append([*gain.gained_backward(grad, z, bias, c), row_norms.wide_product(z, c[None])])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_a_gradient_without_its_bias_is_caught() -> None:
    grad, z, bias, c = drawn(300, 48)
    _, wanted = kernel.gained_backward(grad.double(), z.double(), bias.double(), c.double())
    _, wrong = gain.gained_backward(grad, z, None, c)
    assert float((wrong - wanted).abs().max()) > 1e-2 * float(wanted.abs().max())
