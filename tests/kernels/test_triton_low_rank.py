"""The LoRA linear in Triton: the definition in float64, and the very masks of kernels/noise.py."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor
from triton_against_float64 import DEVICE, DTYPES, bound, broken, drawn, error_of

from lorica.kernels import DenseWeight, LowRank, Noise, reference
from lorica.kernels.triton import low_rank
from lorica.kernels.triton.dropout import Mask
from lorica.kernels.triton.tiles import Tile

SHAPES = [((1,), 5, 7, 1), ((2, 9), 30, 20, 3), ((18,), 20, 18, 17), ((0,), 6, 5, 2)]
"""Of the input but its width, d_in, d_out, rank: fewer rows than a tile, more than two, and none."""
NOISE = Noise(seed=2**32 - 5, step=3, rows=torch.empty(0))


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(low_rank, monkeypatch)


def make_small(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PRODUCT", Tile(rows=16, columns=16, inner=16, warps=1, stages=1))
    monkeypatch.setattr(module, "THIN", Tile(rows=16, columns=16, inner=16, warps=1, stages=1))


def noise_of(batch: tuple[int, ...]) -> Noise:
    """Rows of the data set as far as 32 bits go, and with one dimension positions of their own."""
    rows = torch.arange(batch[0], device=DEVICE) + 2**32 - 7
    positions = torch.arange(batch[0], device=DEVICE) % 5 if len(batch) == 1 else None
    return replace(NOISE, rows=rows, positions=positions)


def error(
    module: ModuleType, dtype: torch.dtype, case: tuple[tuple[int, ...], int, int, int], dropout: float, bias: bool
) -> float:
    batch, d_in, d_out, rank = case
    W, x = drawn(d_out, d_in, seed=0, dtype=dtype), drawn(*batch, d_in, seed=1, dtype=dtype)
    A, B = drawn(rank, d_in, seed=2, dtype=dtype), drawn(d_out, rank, seed=3, dtype=dtype)
    b = drawn(d_out, seed=4, dtype=dtype) if bias else None
    noise = noise_of(batch) if dropout else None

    def definition(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        made = LowRank(A=A, B=B, scale=1.7, dropout=dropout, site=0xDEADBEEF)
        return reference(x, DenseWeight(W.double()), None if b is None else b.double(), made, noise)

    def op(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        made = LowRank(A=A, B=B, scale=1.7, dropout=dropout, site=0xDEADBEEF)
        return module.low_rank_linear(x, DenseWeight(W), b, made, noise)

    return error_of(op, definition, [x, A, B], drawn(*batch, d_out, seed=5, dtype=dtype))


@pytest.mark.parametrize("case", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_output_and_gradients_are_the_definitions(
    case: tuple[tuple[int, ...], int, int, int], dtype: torch.dtype, dropout: float
) -> None:
    """Two roundings more than other ops have, those of the middle and of a kept channel, go through the products."""
    assert error(low_rank, dtype, case, dropout, bias=dropout == 0) < 2 * bound(dtype, 64)


@pytest.mark.parametrize("width", [1, 6, 20])
def test_masks_are_those_of_noise_to_the_bit(width: int) -> None:
    """Read off products with a unit matrix, of which each sum has one term that is not zero."""
    noise = noise_of((33,))
    x = drawn(33, width, seed=0, dtype=torch.float32)
    keep = noise.keep(0.3, 5, x)
    assert 0 < keep.count_nonzero() < keep.numel()
    mask, unit = Mask.of(noise, 0.3, 5, x), torch.eye(width, device=DEVICE)
    assert torch.equal(low_rank.thin_product(x, unit, 1.0, mask), x * keep)
    nothing = torch.zeros(33, 1, device=DEVICE), torch.zeros(1, width, device=DEVICE)
    assert torch.equal(low_rank.product(*nothing, None, x, unit, 1.0, mask), x * keep)


def test_a_weight_stored_transposed_is_read_where_it_lies() -> None:
    W, x = drawn(20, 18, seed=0, dtype=torch.float32), drawn(3, 18, seed=1, dtype=torch.float32)
    given = LowRank(A=drawn(3, 18, seed=2).float(), B=drawn(20, 3, seed=3).float(), scale=0.5)
    found = low_rank.low_rank_linear(x, DenseWeight(W.T.contiguous(), transposed=True), None, given)
    assert torch.equal(found, low_rank.low_rank_linear(x, DenseWeight(W), None, given))


def test_neither_the_mask_nor_the_dropped_input_is_kept() -> None:
    x = drawn(33, 36, seed=0, dtype=torch.float32).requires_grad_(True)
    A, B = drawn(3, 36, seed=1, dtype=torch.float32), drawn(18, 3, seed=2, dtype=torch.float32)
    made = LowRank(A=A.requires_grad_(True), B=B.requires_grad_(True), scale=1.0, dropout=0.5)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        low_rank.low_rank_linear(x, DenseWeight(drawn(18, 36, seed=3).float()), None, made, noise_of((33,)))
    assert sorted(kept) == sorted([x.numel(), 33 * 3, A.numel(), B.numel()])


BREAKS = [
    ("_words(mask)", "_words(None if mask is None else replace(mask, site=mask.site + 1))"),
    ('tl.dot(u, v, input_precision="ieee") * scale', 'tl.dot(u, v, input_precision="ieee")'),
    ("parts(tokens, splits), *_words", "parts(tokens, splits) - 1, *_words"),
    ("inner, A, 1.0, ctx.mask", "inner, A, 1.0, None"),
]


@pytest.mark.parametrize(("right", "wrong"), BREAKS, ids=[wrong for _, wrong in BREAKS])
def test_a_wrong_kernel_is_seen(right: str, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask of its own, even in every kernel alike; a lost scale; tokens without a gradient; dx without its mask."""
    copy = broken(low_rank, right, wrong, tmp_path)
    copy.__dict__["replace"] = replace
    make_small(copy, monkeypatch)
    assert error(copy, torch.float32, SHAPES[2], 0.3, bias=False) > 20 * bound(torch.float32, 64)
