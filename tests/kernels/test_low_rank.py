"""The fused low-rank linear against its definition in double precision; a wrong kernel is caught.

A sum of n products of type t is within n * eps(t) * sum |products| of the exact one; three sums follow one another.
"""

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from lorica.kernels import DenseWeight, FrozenWeight, LowRank, Noise, low_rank_linear, reference

kernel = import_module("lorica.kernels.low_rank_linear")
SHAPES = [((1,), 1, 1, 1), ((5,), 7, 3, 2), ((2, 3), 8, 16, 4), ((1, 1), 33, 5, 5), ((64,), 96, 40, 8), ((0,), 4, 4, 1)]
TYPES = [torch.float64, torch.float32, torch.bfloat16]
GAINS = ["", "input", "middle", "output", "base", "base output", "base output dropped_base", "bias"]
Arguments = tuple[Tensor, FrozenWeight, Tensor | None, LowRank, Noise | None]
Shape = tuple[tuple[int, ...], int, int, int]
"""Leading dimensions of x, d_in, d_out, r."""


def with_fields(low_rank: LowRank, **fields: Any) -> LowRank:
    return replace(low_rank, **fields)


def made(shape: Shape, dropout: float = 0.0, gains: str = "", transposed: bool = False) -> Arguments:
    """x, W, bias and LowRank in double precision, and a noise that fits x."""
    lead, d_in, d_out, r = shape
    generator = torch.Generator().manual_seed(sum(lead) + d_in)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    widths = {"input": d_in, "middle": r, "output": d_out, "base": d_out, "dropped_base": d_out, "bias": d_out}
    extra = {name: draw(widths[name]) for name in gains.split()}
    low_rank = LowRank(A=draw(r, d_in), B=draw(d_out, r), scale=2.5, dropout=dropout, site=3, **extra)
    stored = draw(d_in, d_out) if transposed else draw(d_out, d_in)
    x = draw(*lead, d_in)
    count = x[..., 0].numel()
    flat = Noise(1, 2, torch.arange(count), torch.arange(count))
    rows = Noise(1, 2, torch.arange(lead[0])) if len(lead) == 2 else flat
    return x, DenseWeight(stored, transposed), draw(d_out), low_rank, rows if dropout else None


def cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, FrozenWeight):
        return DenseWeight(value.stored.to(dtype), value.transposed)
    if isinstance(value, LowRank):
        fields = {name: part.to(dtype) if isinstance(part, Tensor) else part for name, part in vars(value).items()}
        return LowRank(**fields)
    return value.to(dtype) if isinstance(value, Tensor) else value


def magnitude(x: Tensor, weight: FrozenWeight, bias: Tensor | None, low_rank: LowRank, noise: Noise | None) -> Tensor:
    """The definition with every number replaced by its size: what the error bound is relative to."""
    sizes = {name: part.abs() for name, part in vars(low_rank).items() if isinstance(part, Tensor)}
    size = None if bias is None else bias.abs()
    return reference(
        x.abs(), DenseWeight(weight.stored.abs(), weight.transposed), size, with_fields(low_rank, **sizes), noise
    )


def bound(dtype: torch.dtype, d_in: int, r: int) -> float:
    return (d_in + r + 8) * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dropout", "transposed"), list(product([0.0, 0.4], [False, True])))
def test_forward_and_gradients_are_the_definitions(shape: Shape, dtype: torch.dtype, dropout: float, transposed: bool):
    error = worst(low_rank_linear, shape, dtype, dropout, transposed)
    assert error <= 1, f"{error:.1f} times the bound"


def worst(
    op: Callable[..., Tensor], shape: Shape, dtype: torch.dtype, dropout: float, transposed: bool = False
) -> float:
    """The largest error of output and gradients in units of their bound."""
    exact = made(shape, dropout, transposed=transposed)
    rounded = [cast(cast(value, dtype), torch.float64) for value in exact]
    narrow = [cast(value, dtype) for value in exact]
    got, expected, size = (values(f, a) for f, a in ((op, narrow), (reference, rounded), (magnitude, rounded)))
    limit = bound(dtype, max(shape[1], shape[2], x_rows(shape)), shape[3])
    ratios = [
        ((g.double() - e).abs() / (limit * s.abs() + 1e-300)).max().item()
        for g, e, s in zip(got, expected, size, strict=True)
        if g.numel()
    ]
    return max(ratios, default=0.0)


def x_rows(shape: Shape) -> int:
    rows = 1
    for length in shape[0]:
        rows *= length
    return rows


def values(op: Callable[..., Tensor], arguments: Arguments) -> list[Tensor]:
    """The output, and the gradients of x, A and B under an output gradient of ones."""
    x, weight, bias, low_rank, noise = arguments
    leaves = [part.detach().clone().requires_grad_(True) for part in (x, low_rank.A, low_rank.B)]
    y = op(leaves[0], weight, bias, with_fields(low_rank, A=leaves[1], B=leaves[2]), noise)
    y.sum().backward()
    return [y.detach(), *(leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for leaf in leaves)]


@pytest.mark.parametrize("gains", GAINS, ids=str)
def test_gains_are_where_the_definition_has_them(gains: str):
    x, weight, bias, low_rank, noise = made(((5,), 7, 3, 2), 0.4, gains)
    one = torch.ones((), dtype=torch.float64)
    gain = {name: getattr(low_rank, name) if getattr(low_rank, name) is not None else one for name in vars(low_rank)}
    d = low_rank.drop(x, noise)
    W = weight.dense()
    expected = gain["base"] * (x @ W.T) + bias
    expected = expected + 2.5 * gain["output"] * (
        (gain["middle"] * ((gain["input"] * d) @ low_rank.A.T)) @ low_rank.B.T
    )
    expected = expected + (low_rank.bias if low_rank.bias is not None else 0)
    expected = expected + (low_rank.dropped_base * (d @ W.T) if low_rank.dropped_base is not None else 0)
    torch.testing.assert_close(low_rank_linear(x, weight, bias, low_rank, noise), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradients_pass_gradcheck(dropout: float):
    x, weight, bias, low_rank, noise = made(((4,), 5, 3, 2), dropout)

    def op(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        return low_rank_linear(x, weight, bias, with_fields(low_rank, A=A, B=B), noise)

    leaves = tuple(part.detach().clone().requires_grad_(True) for part in (x, low_rank.A, low_rank.B))
    assert torch.autograd.gradcheck(op, leaves)


def test_only_the_gradients_that_are_wanted_are_made():
    x, weight, bias, low_rank, _ = made(((4,), 5, 3, 2))
    A = low_rank.A.clone().requires_grad_(True)
    low_rank_linear(x, weight, bias, with_fields(low_rank, A=A), None).sum().backward()
    assert A.grad is not None
    assert x.grad is None


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("lead", [(7,), (2, 5)], ids=str)
def test_a_zero_B_leaves_the_linears_own_product_to_the_bit(
    lead: tuple[int, ...], dtype: torch.dtype, transposed: bool
):
    exact = made((lead, 33, 20, 4), transposed=transposed)
    x, weight, bias, low_rank, _ = (cast(value, dtype) for value in exact)
    still = with_fields(low_rank, B=torch.zeros_like(low_rank.B))
    module = conv1d(weight, bias) if transposed else linear(weight, bias)
    assert torch.equal(low_rank_linear(x, weight, bias, still), module(x))
    assert torch.equal(reference(x, weight, bias, with_fields(still, base=torch.ones(20, dtype=dtype))), module(x))


def linear(weight: FrozenWeight, bias: Tensor) -> torch.nn.Module:
    module = torch.nn.Linear(33, 20, dtype=bias.dtype)
    module.weight.data, module.bias.data = weight.stored, bias
    return module


def conv1d(weight: FrozenWeight, bias: Tensor) -> torch.nn.Module:
    from transformers.pytorch_utils import Conv1D

    module = Conv1D(20, 33)
    module.weight.data, module.bias.data = weight.stored, bias
    return module


def test_nothing_of_the_size_of_the_output_is_kept_for_the_backward_pass():
    x, weight, bias, low_rank, _ = made(((64,), 16, 4000, 2))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        low_rank_linear(x, weight, bias, with_fields(low_rank, A=low_rank.A.requires_grad_(True)), None)
    assert max(kept) < 64 * 4000


WRONG = {
    "scale": lambda x, w, b, lr, n: low_rank_linear(x, w, b, with_fields(lr, scale=5.0), n),
    "bias": lambda x, w, b, lr, n: low_rank_linear(x, w, -b, lr, n),
    "mask": lambda x, w, b, lr, n: low_rank_linear(x, w, b, lr, None),
    "twice": lambda x, w, b, lr, n: low_rank_linear(x, w, b, lr, n) + lr.delta(lr.drop(x, n)),
    "still A": lambda x, w, b, lr, n: low_rank_linear(x, w, b, with_fields(lr, A=lr.A.detach()), n),
}


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_kernel_is_caught(wrong: str, dtype: torch.dtype):
    assert worst(low_rank_linear, ((16,), 7, 3, 2), dtype, 0.4) <= 1
    assert worst(WRONG[wrong], ((16,), 7, 3, 2), dtype, 0.4) > 1


def test_a_wrong_gradient_is_caught(monkeypatch: pytest.MonkeyPatch):
    def halved(ctx, grad):
        flat, middle, A, B = ctx.saved_tensors
        inner = (grad.reshape(-1, grad.shape[-1]) @ B).mul_(ctx.scale)
        return None, (inner @ A).view(ctx.shape), 0.5 * inner.T @ flat, (middle @ grad).mul_(ctx.scale).T, *[None] * 3

    monkeypatch.setattr(kernel._Dropped, "backward", staticmethod(halved))
    assert worst(low_rank_linear, ((16,), 7, 3, 2), torch.float64, 0.4) > 1
