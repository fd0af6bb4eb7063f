"""Quantised weights: bit for bit what bitsandbytes has, bit for bit what the paper's construction gives, and products
that keep nothing dense."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lorica.errors import ModelError
from lorica.kernels import DenseWeight, FrozenWeight, quantised
from lorica.kernels.bitsandbytes import library
from lorica.kernels.low_rank import LowRank
from lorica.kernels.low_rank_linear import low_rank_linear
from lorica.kernels.quantised import EightBit, FourBit, bytes_of
from oracles import nf4

SHAPES = [(8, 64), (5, 48), (3, 22), (300, 128), (1, 2)]
"""Whole blocks, a block over two rows, a tail, several blocks of scales, less than a block."""


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return (0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def four(W: Tensor, double: bool = True) -> FourBit:
    found = quantised.quantised(W, "nf4", double)
    assert isinstance(found, FourBit)
    return found


def test_the_table_is_what_its_construction_gives():
    """To the rounding with which the published values were computed, in float32."""
    assert np.abs(nf4.constructed() - nf4.TABLE).max() <= np.finfo(np.float32).eps


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_codes_and_scales_are_the_oracles_bit_for_bit(shape: tuple[int, int], dtype: torch.dtype):
    W = drawn(*shape, dtype=dtype)
    found, flat = four(W, double=False), W.float().numpy().reshape(-1)
    codes, absmax = nf4.quantised(flat)
    assert np.array_equal(found.codes.numpy().reshape(-1), codes)
    assert np.array_equal(found.absmax.numpy(), absmax)
    expected = torch.from_numpy(nf4.dequantised(codes, absmax, flat.size)).view(shape).to(dtype)
    assert torch.equal(found.dense(), expected)


@pytest.mark.parametrize("shape", SHAPES[:4])
def test_scales_are_quantised_as_the_oracle_does_it_bit_for_bit(shape: tuple[int, int]):
    W = drawn(*shape)
    found, flat = four(W), W.numpy().reshape(-1)
    codes, absmax = nf4.quantised(flat)
    assert found.offset is not None
    assert found.scales is not None
    offset = np.float32(found.offset)
    # the sum of M numbers in another order
    assert abs(offset - absmax.astype(np.float64).mean()) <= absmax.mean() * np.finfo(np.float32).eps * len(absmax)
    small, scales = nf4.quantised_scales(absmax, offset)
    assert np.array_equal(found.absmax.numpy(), small)
    assert np.array_equal(found.scales.numpy(), scales)
    assert found.levels is not None
    levels = found.levels.numpy()
    assert np.abs(levels - nf4.dynamic_map()).max() <= np.finfo(np.float32).eps / 2  # theirs are made in float32
    again = nf4.dequantised(codes, nf4.dequantised_scales(small, scales, offset, levels), flat.size)
    assert torch.equal(found.dense(), torch.from_numpy(again).view(shape))


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("form", ["nf4", "fp4"])
def test_a_weight_in_pieces_is_bitsandbytes_own_whole_one(form: Any, double: bool, monkeypatch):
    monkeypatch.setattr(quantised, "PIECE", 256)
    W = drawn(37, 50, dtype=torch.bfloat16)
    codes, state = library().quantize_4bit(W, blocksize=64, compress_statistics=double, quant_type=form)
    ours, theirs = quantised.quantised(W, form, double), quantised.of_state(codes, state)
    held, found = quantised.tensors_of(ours), quantised.tensors_of(theirs)
    assert held.keys() == found.keys()
    assert all(torch.equal(held[name], found[name]) for name in held)
    assert torch.equal(ours.dense(), library().dequantize_4bit(codes, state))


def test_eight_bits_are_bitsandbytes_own(monkeypatch):
    monkeypatch.setattr(quantised, "PIECE", 100)
    W = drawn(37, 50, dtype=torch.bfloat16)
    found = quantised.quantised(W, "int8")
    assert isinstance(found, EightBit)
    codes, absmax, _ = library().int8_vectorwise_quant(W.half())
    assert torch.equal(found.codes, codes)
    wide = library().int8_vectorwise_dequant(codes, absmax)
    # they divide by 127 last, and we first: a rounding of float32 apart, which bfloat16 shows where it falls on a half
    unit = torch.finfo(torch.bfloat16).eps
    assert (found.dense().float() - wide).abs().max() <= unit * wide.abs().max()
    assert torch.equal(found.codes.float().abs().amax(1), torch.full((37,), 127.0))


def test_what_is_read_in_inference_first_is_read_outside_of_it_as_well(monkeypatch):
    """Answers before training: memory that was made for them is written to again by a step."""
    monkeypatch.setattr(quantised, "_workspaces", quantised._Workspaces())
    weight, x = quantised.quantised(drawn(37, 50), "nf4"), drawn(3, 50)
    with torch.inference_mode():
        first = weight.product(x).clone()
    assert torch.equal(weight.product(x), first)


def test_the_published_errors_on_normal_numbers():
    """20.73 dB; +0.05 % for quantised scales; 4.127 bits a number."""
    W = drawn(2048, 2048)
    power = W.double().square().mean()
    plain, double = four(W, double=False), four(W)
    error, error_double = ((each.dense() - W).double().square().mean() / power for each in (plain, double))
    assert -10 * torch.log10(error) == pytest.approx(20.73, abs=0.01)
    assert error_double / error - 1 == pytest.approx(0.0005, abs=0.0002)
    bits = 8 * (bytes_of(double) - 256 * 4 - 4) / W.numel()
    assert bits == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-6)
    assert round(bits, 3) == 4.127


def test_quantising_what_was_dequantised_changes_nothing():
    once = four(drawn(64, 64), double=False).dense()
    assert torch.equal(four(once, double=False).dense(), once)


@pytest.mark.parametrize("form", ["nf4", "int8"])
@pytest.mark.parametrize("bias", [True, False])
def test_products_are_those_of_the_dense_weight_and_keep_none(form: Any, bias: bool):
    W = quantised.quantised(drawn(48, 64), form)
    dense = DenseWeight(W.dense())
    b = drawn(48, seed=1) if bias else None
    factors = [drawn(4, 64, seed=2), drawn(48, 4, seed=3)]

    def passed(weight: FrozenWeight, adapted: bool) -> tuple[list[Tensor], int]:
        x = drawn(10, 64, seed=4).requires_grad_()
        A, B = (factor.clone().requires_grad_() for factor in factors)
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            low_rank = LowRank(A=A, B=B, scale=2.0)
            y = low_rank_linear(x, weight, b, low_rank) if adapted else weight.linear(x, b)
        (y * drawn(10, 48, seed=5)).sum().backward()
        largest = max((tensor.numel() for tensor in kept), default=0)
        found = [y.detach(), x.grad, *((A.grad, B.grad) if adapted else ())]
        return [each for each in found if each is not None], largest

    for adapted in (True, False):
        ours, kept = passed(W, adapted)
        theirs, _ = passed(dense, adapted)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        assert kept < W.shape[0] * W.shape[1], "a dense weight is kept for the backward pass"


def test_blank_tensors_have_the_sizes_of_real_ones():
    for form, double in (("nf4", True), ("nf4", False), ("int8", False)):
        real = quantised.tensors_of(quantised.quantised(drawn(37, 50), form, double))  # type: ignore[arg-type]
        with torch.device("meta"):
            blank = quantised.tensors_of(quantised.blank((37, 50), torch.float32, form, double))  # type: ignore[arg-type]
        assert {n: (t.shape, t.dtype) for n, t in real.items()} == {n: (t.shape, t.dtype) for n, t in blank.items()}


def test_a_weight_that_bitsandbytes_packed_anew_is_refused():
    import bitsandbytes

    layer = bitsandbytes.nn.Linear4bit(64, 32, bias=False, quant_type="nf4", compute_dtype=torch.bfloat16).to("cpu")
    assert isinstance(FrozenWeight.of(layer), FourBit)
    layer.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ModelError, match="load the model again"):
        FrozenWeight.of(layer)


def test_a_layer_that_is_not_quantised_yet_is_refused():
    import bitsandbytes

    for layer in (bitsandbytes.nn.Linear4bit(64, 32), bitsandbytes.nn.Linear8bitLt(64, 32, has_fp16_weights=False)):
        with pytest.raises(ModelError, match="not quantised yet"):
            FrozenWeight.of(layer)


def test_without_bitsandbytes_the_remedy_is_told(monkeypatch):
    import sys

    library.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "bitsandbytes"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    try:
        with pytest.raises(ModelError, match=r"pip install 'lorica\[quant\]'"):
            library()
    finally:
        library.cache_clear()


def test_a_linear_of_ours_is_dense():
    assert isinstance(FrozenWeight.of(nn.Linear(4, 4)), DenseWeight)
