"""LoRA-FA's gradients are the papers', corrected or not."""

from typing import Any

import pytest
import torch
from lora import lora, scale
from lora_fa import corrected, gradient_of_B
from torch import Tensor, nn

from lorica.methods.contract import Start
from lorica.methods.lora_fa import LoRAFA
from lorica.models.ambient import Pass
from lorica.site import Site

SITE = Site(name="layers.0.q", kind="linear", shape=(5, 6))
S = scale(8, 3)


def made(correct: bool, seed: int = 1) -> Any:
    start = Start(torch.Generator().manual_seed(seed), torch.device("cpu"), torch.float64)
    module: Any = LoRAFA(r=3, alpha=8, corrected=correct).around(SITE)(start)
    with torch.no_grad():
        module.B.copy_(torch.randn(5, 3, generator=torch.Generator().manual_seed(2)))
    return module


def learned(module: Any) -> tuple[Tensor, Tensor, Tensor, nn.Linear]:
    """Inputs, gradients of the outputs, and outputs, after a backward pass over four tokens."""
    generator = torch.Generator().manual_seed(3)
    x, g = (torch.randn(4, width, generator=generator, dtype=torch.float64) for width in (6, 5))
    base = nn.Linear(6, 5).double().requires_grad_(False)
    y = module(x, base, Pass())
    y.backward(g)
    return x, g, y.detach(), base


@pytest.mark.parametrize("correct", [False, True])
def test_outputs_and_gradients_are_the_papers(correct: bool):
    module = made(correct)
    x, g, y, base = learned(module)
    A = module.A.tolist()
    expected = gradient_of_B(x.tolist(), g.tolist(), A, S)
    expected = corrected(expected, A, S) if correct else expected
    torch.testing.assert_close(module.B.grad, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    values = [lora(token, base.weight.tolist(), base.bias.tolist(), A, module.B.tolist(), S) for token in x.tolist()]
    torch.testing.assert_close(y, torch.tensor(values, dtype=torch.float64), rtol=0, atol=1e-13)


def test_a_corrected_step_moves_W_by_the_same_whatever_A_spans_its_rows_with():
    """s g A is dL/dW projected on the rows of A."""
    first, other = made(True), made(True)
    other.A.copy_(torch.randn(3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64) @ first.A)
    (x, g, _, _), _ = learned(first), learned(other)
    moves = [S * module.B.grad @ module.A for module in (first, other)]
    onto = torch.linalg.pinv(first.A) @ first.A
    torch.testing.assert_close(moves[0], (g.T @ x) @ onto, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(moves[1], moves[0], rtol=1e-11, atol=1e-11)


def test_rows_of_A_that_depend_on_each_other_leave_the_gradient_finite():
    module = made(True)
    module.A[2] = 2 * module.A[1]
    x, g, _, _ = learned(module)
    onto = torch.linalg.pinv(module.A) @ module.A
    torch.testing.assert_close(S * module.B.grad @ module.A, (g.T @ x) @ onto, rtol=1e-9, atol=1e-9)
