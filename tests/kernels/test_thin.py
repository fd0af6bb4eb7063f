"""Products of few long rows with many in C: the definition in float64, summed in float32, and no bit from threads."""

import pytest
import torch
from torch import Tensor

from lorica.kernels import is_native
from lorica.kernels.native import thin as native
from lorica.kernels.native.thin import Thin
from lorica.kernels.thin import thin_product

BF16 = torch.bfloat16
pytestmark = pytest.mark.skipif(
    not is_native("thin", torch.zeros(1, dtype=BF16)), reason="no kernels in C for this processor"
)
SHAPES = [
    (1, 1, 1),
    (8, 543, 384),
    (3, 17, 33),
    (5, 8, 100),
    (8, 700, 48),
    (8, 0, 40),
    (12, 41, 65),
    (24, 300, 96),
    (40, 129, 70),
    (128, 64, 32),
]
"""R, T, N."""


def drawn(R: int, T: int, N: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(R + T + N)
    return torch.randn(R, T, generator=generator).to(BF16), torch.randn(T, N, generator=generator).to(BF16)


def made(left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
    return native.thin_products([Thin(left, right, scale)])[0]


def worst(found: Tensor, left: Tensor, right: Tensor, scale: float) -> float:
    """The largest error in units of its bound: T and two more roundings of float32 of the sum of sizes."""
    exact = scale * left.double() @ right.double()
    sizes = abs(scale) * left.double().abs() @ right.double().abs()
    limit = (left.shape[1] + 2) * torch.finfo(torch.float32).eps * sizes
    return float(((found.double() - exact).abs() / (limit + 1e-300)).max())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_summed_in_float32(shape: tuple[int, int, int]) -> None:
    left, right = drawn(*shape)
    found = made(left, right, 2.5)
    assert found.dtype == torch.float32
    assert worst(found, left, right, 2.5) <= 1
    spread = torch.stack([right, right], 2)[..., 0], left.T.contiguous().T
    assert torch.equal(made(spread[1], spread[0], 2.5), found)


def test_a_scale_that_is_off_is_seen() -> None:
    left, right = drawn(8, 300, 64)
    assert worst(made(left, right, 2.501), left, right, 2.5) > 1


def test_several_are_each_as_it_is_alone_row_by_row_or_column_by_column() -> None:
    pairs = [drawn(*shape) for shape in SHAPES]
    together = native.thin_products([Thin(*pair, 2.0) for pair in pairs])
    by_columns = native.thin_products([Thin(*pair, 2.0, by_columns=True) for pair in reversed(pairs)])[::-1]
    for pair, one, other in zip(pairs, together, by_columns, strict=True):
        assert torch.equal(one, made(*pair, 2.0))
        assert torch.equal(other, one)
        assert one.is_contiguous()
        assert other.T.is_contiguous()


def test_a_gain_is_each_columns_own() -> None:
    left, right = drawn(5, 40, 70)
    gain = torch.linspace(-2, 3, 70)
    (found,) = native.thin_products([Thin(left, right, 2.0, gain)])
    assert torch.equal(found, made(left, right) * (2.0 * gain))


def test_threads_and_columns_beside_it_change_no_bit() -> None:
    left, right = drawn(8, 700, 515)
    whole, before = made(left, right), torch.get_num_threads()
    assert torch.equal(made(left, right[:, 100:133]), whole[:, 100:133])
    try:
        for threads in (1, 2, 3, 16):
            torch.set_num_threads(threads)
            assert torch.equal(made(left, right), whole)
    finally:
        torch.set_num_threads(before)


def test_of_other_types_it_is_the_librarys() -> None:
    left, right = drawn(8, 40, 64)
    assert torch.equal(thin_product(left, right, 2.0), made(left, right, 2.0))
    assert torch.equal(thin_product(left[:2].double(), right.double()), left[:2].double() @ right.double())
