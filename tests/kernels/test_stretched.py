"""One gain on the sum of both products: forward and gradients are the definition's, and one product is kept for it."""

from collections.abc import Callable
from importlib import import_module
from itertools import product
from typing import Any

import pytest
import torch
from test_low_rank import SHAPES, TYPES, Shape, bound, cast, made, with_fields, x_rows
from torch import Tensor

from lorica.kernels import DenseWeight, LowRank, low_rank_linear, reference


def gained(shape: Shape, transposed: bool, with_bias: bool) -> tuple[Any, ...]:
    """x, W, bias, LowRank without its gain, and a gain about one, in double precision."""
    x, weight, bias, low_rank, _ = made(shape, transposed=transposed)
    gain = 1 + 0.3 * torch.randn(shape[2], generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return x, weight, bias if with_bias else None, low_rank, gain


def values(op: Callable[..., Tensor], x: Tensor, weight: Any, bias: Any, low_rank: LowRank, gain: Tensor) -> list[Any]:
    """Output and the gradients of x, A, B and the gain under an output gradient of ones."""
    leaves = [part.detach().clone().requires_grad_(True) for part in (x, low_rank.A, low_rank.B, gain)]
    y = op(leaves[0], weight, bias, with_fields(low_rank, A=leaves[1], B=leaves[2], base=leaves[3], output=leaves[3]))
    y.sum().backward()
    return [y.detach(), *(leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for leaf in leaves)]


def size(x: Tensor, weight: Any, bias: Any, low_rank: LowRank) -> Tensor:
    """The definition with every number replaced by its size; of the gain, one is taken and added again."""
    sizes = {name: part.abs() for name, part in vars(low_rank).items() if isinstance(part, Tensor)}
    sizes |= {"base": sizes["base"] + 3, "output": sizes["base"] + 3}
    added = None if bias is None else 3 * bias.abs()
    plain = DenseWeight(weight.stored.abs(), weight.transposed)
    return reference(x.abs(), plain, added, with_fields(low_rank, **sizes))


def worst(op: Callable[..., Tensor], shape: Shape, dtype: torch.dtype, transposed: bool, with_bias: bool) -> float:
    """The largest error of output and gradients in units of their bound; the bias passes through z and back."""
    exact = gained(shape, transposed, with_bias)
    narrow = [cast(value, dtype) for value in exact]
    rounded = [cast(value, torch.float64) for value in narrow]
    got, expected, sizes = values(op, *narrow), values(reference, *rounded), values(size, *rounded)
    if with_bias:
        sizes[4] = sizes[4] + 2 * x_rows(shape) * rounded[2].abs()
    limit = bound(dtype, max(shape[1], shape[2], x_rows(shape)), shape[3])
    ratios = [
        float(((g.double() - e).abs() / (limit * s.abs() + 1e-300)).max())
        for g, e, s in zip(got, expected, sizes, strict=True)
        if g.numel()
    ]
    return max(ratios, default=0.0)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("transposed", "with_bias"), list(product([False, True], [False, True])))
def test_forward_and_gradients_are_the_definitions(shape: Shape, dtype: torch.dtype, transposed: bool, with_bias: bool):
    error = worst(low_rank_linear, shape, dtype, transposed, with_bias)
    assert error <= 1, f"{error:.1f} times the bound"


@pytest.mark.parametrize("with_bias", [False, True])
def test_gradients_pass_gradcheck(with_bias: bool):
    x, weight, bias, low_rank, gain = gained(((4,), 5, 3, 2), False, with_bias)

    def op(x: Tensor, A: Tensor, B: Tensor, gain: Tensor) -> Tensor:
        return low_rank_linear(x, weight, bias, with_fields(low_rank, A=A, B=B, base=gain, output=gain))

    leaves = [part.detach().clone().requires_grad_(True) for part in (x, low_rank.A, low_rank.B, gain)]
    assert torch.autograd.gradcheck(op, leaves)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_zero_B_and_a_gain_of_one_leave_the_layers_own_product_to_the_bit(dtype: torch.dtype):
    x, weight, bias, low_rank, _ = (cast(value, dtype) for value in made(((7,), 33, 20, 4)))
    one = torch.ones(20, dtype=torch.promote_types(dtype, torch.float32))
    still = with_fields(low_rank, B=torch.zeros_like(low_rank.B), base=one, output=one)
    assert torch.equal(low_rank_linear(x, weight, bias, still), torch.nn.functional.linear(x, weight.stored, bias))


def test_beside_the_input_and_the_middle_one_product_is_kept():
    x, weight, bias, low_rank, gain = gained(((500,), 96, 40, 3), False, True)
    gain.requires_grad_(True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        low_rank_linear(x, weight, bias, with_fields(low_rank, base=gain, output=gain))
    assert sorted(tuple(t.shape) for t in kept if 500 in t.shape) == [(3, 500), (500, 40), (500, 96)]


def test_a_wrong_gradient_of_the_gain_is_caught(monkeypatch: pytest.MonkeyPatch):
    kernel = import_module("lorica.kernels.siblings")

    def without_the_update(grad: Tensor, z: Tensor, bias: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
        return grad * gain, (grad * (z - bias - 2)).sum(0)

    assert worst(low_rank_linear, ((16,), 7, 3, 2), torch.float32, False, True) <= 1
    monkeypatch.setattr(kernel, "gained_backward", without_the_update)
    assert worst(low_rank_linear, ((16,), 7, 3, 2), torch.float32, False, True) > 1
