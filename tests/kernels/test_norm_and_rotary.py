"""RMSNorm and the rotation: the plain definition in float64, forward and backward, at awkward shapes."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lorica.kernels import residual_norm, rms_norm, rotary
from lorica.kernels.rms_norm import reference as rms_norm_reference
from lorica.kernels.rotary import reference as rotary_reference

SHAPES = [(1, 1, 16), (3, 1, 8), (5, 3, 64), (2, 7, 126), (0, 2, 4)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
ROUNDINGS = 8
"""Of an element, forward or backward: its products, sums and casts; sums over a row are taken in float32 or wider."""


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_gradients(op: Callable[..., Tensor], inputs: list[Tensor], towards: Tensor) -> list[Tensor]:
    """Output and gradients, each (..., ) in float64."""
    leaves = [tensor.clone().requires_grad_(True) for tensor in inputs]
    y = op(*leaves)
    y.backward(towards.to(y.dtype))
    return [tensor.double() for tensor in (y.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None))]


def largest_error(found: list[Tensor], wanted: list[Tensor]) -> float:
    pairs = [(f, w) for f, w in zip(found, wanted, strict=True) if w.any()]
    return max((float((f - w).abs().max() / w.abs().max()) for f, w in pairs), default=0.0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rms_norm_and_its_gradients_are_the_definitions(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight, towards = noise(*shape, seed=0).to(dtype), noise(shape[-1], seed=1).to(dtype), noise(*shape, seed=2)
    towards = towards.to(dtype)
    found = with_gradients(lambda x, w: rms_norm(x, w, 1e-5), [x, weight], towards)
    wanted = with_gradients(lambda x, w: rms_norm_reference(x, w, 1e-5), [x.double(), weight.double()], towards)
    assert largest_error(found, wanted) < ROUNDINGS * torch.finfo(dtype).eps


def stepped(x: Tensor, added: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """h = x + added and its norm, by the definitions."""
    return x + added, rms_norm_reference(x + added, weight, 1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("read", [(0, 1), (0,), (1,)], ids=["both", "sum", "norm"])
def test_a_step_of_the_residual_stream_gives_both_and_the_gradients_of_what_is_read_of_it(
    shape: tuple[int, ...], dtype: torch.dtype, read: tuple[int, ...]
) -> None:
    """With something added and without: the gradient of x is that of both ways."""
    x, added, weight = (noise(*size, seed=seed).to(dtype) for seed, size in enumerate((shape, shape, shape[-1:])))
    towards = noise(len(read), *shape, seed=3).to(dtype)
    bound = ROUNDINGS * torch.finfo(dtype).eps

    def chosen(both: tuple[Tensor, Tensor]) -> Tensor:
        return torch.stack([both[i] for i in read])

    wide = [part.double() for part in (x, added, weight)]
    found = with_gradients(lambda x, a, w: chosen(residual_norm(x, a, w, 1e-5)), [x, added, weight], towards)
    wanted = with_gradients(lambda x, a, w: chosen(stepped(x, a, w)), wide, towards)
    assert len(found) == (4 if 1 in read else 3)
    assert largest_error(found, wanted) < bound
    found = with_gradients(lambda x, w: chosen(residual_norm(x, None, w, 1e-5)), [x, weight], towards)
    wanted = with_gradients(lambda x, w: chosen(stepped(x, torch.zeros_like(x), w)), [wide[0], wide[2]], towards)
    assert largest_error(found, wanted) < bound


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_step_of_the_residual_stream_is_sum_and_norm_to_the_bit(dtype: torch.dtype) -> None:
    x, added, weight = noise(70, 126, seed=0).to(dtype), noise(70, 126, seed=1).to(dtype), noise(126, seed=2).to(dtype)
    wanted = x + added, rms_norm(x + added, weight, 1e-5)
    with torch.no_grad():
        assert all(map(torch.equal, residual_norm(x, added, weight, 1e-5), wanted))
    assert all(map(torch.equal, residual_norm(x, added.requires_grad_(), weight, 1e-5), wanted))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rotation_and_its_gradient_are_the_definitions(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    angles = noise(shape[0], 1, shape[-1] // 2, seed=3).repeat(1, 1, 2)
    x, towards = noise(*shape, seed=4).to(dtype), noise(*shape, seed=5).to(dtype)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    found = with_gradients(lambda x: rotary(cos, sin, x)[0], [x], towards)
    wanted = with_gradients(lambda x: rotary_reference(x, cos.double(), sin.double()), [x.double()], towards)
    assert largest_error(found, wanted) < ROUNDINGS * torch.finfo(dtype).eps


def test_a_rotation_by_the_wrong_sign_or_a_norm_without_its_projection_would_be_seen() -> None:
    x, towards = noise(5, 3, 64, seed=0), noise(5, 3, 64, seed=1)
    angles = noise(5, 1, 32, seed=2).repeat(1, 1, 2)
    turned = with_gradients(lambda x: rotary(angles.cos(), angles.sin(), x)[0], [x], towards)
    back = with_gradients(lambda x: rotary(angles.cos(), -angles.sin(), x)[0], [x], towards)
    assert largest_error(turned, back) > 0.1
    weight = torch.ones(64, dtype=torch.float64)
    normed = with_gradients(lambda x: rms_norm(x, weight, 1e-5), [x], towards)
    inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)
    assert largest_error(normed[1:], [towards * inverse]) > 0.01
