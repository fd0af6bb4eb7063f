"""A low-rank linear whose A is frozen: the same numbers, and of its input only the product with A is kept."""

from itertools import product
from typing import Any

import pytest
import torch
from test_low_rank import SHAPES, TYPES, Shape, cast, made, values, with_fields, worst
from torch import Tensor

from lorica.kernels import LowRank, Noise, low_rank_linear, reference


def frozen(low_rank: LowRank) -> LowRank:
    return with_fields(low_rank, A=low_rank.A.detach(), frozen=True)


def without_A(x: Tensor, weight: Any, bias: Any, low_rank: LowRank, noise: Noise | None) -> Tensor:
    """Output and the gradients of x and B through the kernel; that of A by the definition, which is not in question."""
    still = low_rank_linear(x, weight, bias, frozen(low_rank), noise)
    moving = reference(x.detach(), weight, bias, with_fields(low_rank, B=low_rank.B.detach()), noise)
    return still + (moving - moving.detach())


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dropout", "transposed"), list(product([0.0, 0.4], [False, True])))
def test_forward_and_gradients_are_the_definitions(shape: Shape, dtype: torch.dtype, dropout: float, transposed: bool):
    error = worst(without_A, shape, dtype, dropout, transposed)
    assert error <= 1, f"{error:.1f} times the bound"


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_a_frozen_A_changes_no_bit_of_output_or_gradients(dtype: torch.dtype, dropout: float):
    """But for the gradient of x, whose two parts are added in another order."""
    arguments = [cast(value, dtype) for value in made(((5,), 33, 20, 4), dropout)]
    y, _, _, grad_B = values(low_rank_linear, arguments)  # type: ignore[arg-type]
    still, _, _, still_B = values(without_A, arguments)  # type: ignore[arg-type]
    assert torch.equal(still, y)
    assert torch.equal(still_B, grad_B)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_a_bias_that_is_trained_beside_it_gets_its_gradient(dropout: float):
    x, weight, bias, low_rank, noise = made(((4,), 5, 3, 2), dropout)
    assert bias is not None

    def op(x: Tensor, B: Tensor, bias: Tensor) -> Tensor:
        return low_rank_linear(x, weight, bias, with_fields(low_rank, B=B, frozen=True), noise)

    assert torch.autograd.gradcheck(op, [t.detach().clone().requires_grad_(True) for t in (x, low_rank.B, bias)])


@pytest.mark.parametrize("trained_bias", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_only_the_middle_of_a_token_is_kept_for_the_backward_pass(dropout: float, trained_bias: bool):
    x, weight, bias, low_rank, noise = made(((500,), 96, 40, 3), dropout)
    assert bias is not None
    bias.requires_grad_(trained_bias)
    low_rank = with_fields(low_rank, B=low_rank.B.requires_grad_(True), frozen=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        low_rank_linear(x.requires_grad_(True), weight, bias, low_rank, noise)
    a_token = [tuple(t.shape) for t in kept if 500 in t.shape]
    assert a_token == [(3, 500)], "what is saved of the 500 tokens"
    assert len(kept) == 3, "beside it A and B"
