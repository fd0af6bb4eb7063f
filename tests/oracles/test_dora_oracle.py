"""DoRA's modules compute what the paper says, term by term, and its gradients are those of a constant norm."""

from typing import Any

import pytest
import torch
from dora import direction, dora, gradients, norms
from lora import scale
from philox import kept
from torch import Tensor, nn

from lorica.kernels import DenseWeight, Noise, site_id
from lorica.methods.contract import Start
from lorica.methods.dora import DoRA, DoRAEmbedding, DoRALinear
from lorica.models.ambient import Pass
from lorica.site import Site

SITE = Site(name="layers.0.q", kind="linear", shape=(5, 6))
TABLE = Site(name="embed", kind="embedding", shape=(9, 4))


def noisy(module: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


def made(config: DoRA) -> tuple[DoRALinear, nn.Linear]:
    base: Any = noisy(nn.Linear(6, 5).double(), 3).requires_grad_(False)
    start = Start(torch.Generator(), torch.device("cpu"), torch.float64, DenseWeight(base.weight))
    return noisy(DoRALinear(config, SITE, start), 1), base  # type: ignore[return-value]


def lists(*tensors: Tensor) -> list[Any]:
    return [tensor.detach().tolist() for tensor in tensors]


def close(got: Tensor, expected: Any) -> None:
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-13)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_linear_is_equation_5(rslora: bool, dropout: float):
    module, base = made(DoRA(r=3, alpha=8, dropout=dropout, rslora=rslora))
    x = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    got = module(x, base, Pass(noise=Noise(7, 9, torch.tensor([100, 2**31]), torch.tensor([3, 4]))))
    W, bias, A, B, m = lists(base.weight, base.bias, module.A, module.B, module.magnitude.m)
    for token, (row, position) in enumerate([(100, 3), (2**31, 4)]):
        mask = kept(7, 9, row, position, site_id(SITE.name), 6, dropout) if dropout else [1.0] * 6
        close(got[token].detach(), dora(x[token].tolist(), W, bias, A, B, m, scale(8, 3, rslora), mask))


def test_the_gradients_are_equation_11s_and_not_those_through_the_norm():
    module, base = made(DoRA(r=3, alpha=8))
    x, g = torch.randn(2, 6, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    module(x[0], base, Pass()).backward(g)
    parameters = (module.A, module.B, module.magnitude.m)
    found = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
    expected = gradients(*lists(x[0], base.weight, *parameters), scale(8, 3), g.tolist())
    for got, value in zip(found, expected, strict=True):
        close(got, value)
    V = base.weight + scale(8, 3) * module.B @ module.A
    through_the_norm = torch.autograd.grad(g @ (module.magnitude.m / V.norm(dim=1) * (V @ x[0])), module.B)[0]
    assert (through_the_norm - found[1]).abs().max() > 0.1 * found[1].abs().max()


def test_the_embedding_is_equation_5_on_the_transposed_matrix():
    base: Any = noisy(nn.Embedding(9, 4).double(), 3).requires_grad_(False)
    start = Start(torch.Generator(), torch.device("cpu"), torch.float64, DenseWeight(base.weight))
    module: Any = noisy(DoRAEmbedding(DoRA(r=3, alpha=8), TABLE, start), 1)
    got = module(torch.tensor([2, 8]), base, Pass())
    W, A, B, m = lists(base.weight.T, module.A, module.B, module.magnitude.m)
    for place, token in enumerate([2, 8]):
        one = [float(row == token) for row in range(9)]
        close(got[place].detach(), dora(one, W, [0.0] * 4, A, B, m, scale(8, 3), [1.0] * 9))


def test_a_merged_row_is_as_long_as_its_magnitude():
    module, base = made(DoRA(r=3, alpha=8))
    close(module.merged(base.weight).norm(dim=1), module.magnitude.m.abs().tolist())


def test_magnitudes_that_follow_the_norm_leave_lora():
    module, base = made(DoRA(r=3, alpha=8))
    V = direction(*lists(base.weight, module.A, module.B), scale(8, 3))
    with torch.no_grad():
        module.magnitude.m.copy_(torch.tensor(norms(V), dtype=torch.float64))
    close(module.merged(base.weight), V)
