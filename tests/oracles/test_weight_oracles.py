"""Methods that have a merged weight compute what their papers say, entry by entry, merged and in the forward pass."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import hira
import ia3
import loha
import lokr
import multilora
import pytest
import torch
import vera
from torch import Tensor, nn

from lorica.kernels import FrozenWeight
from lorica.methods import IA3, HiRA, LoHa, LoKr, MultiLoRA, VeRA
from lorica.methods.contract import Start
from lorica.methods.on_layers import OnLayers
from lorica.models.ambient import Pass
from lorica.site import Site

Matrix = list[list[float]]
VALUE = Site(name="layers.0.v", kind="linear", roles=("v",), shape=(8, 6))
DOWN = Site(name="layers.0.down", kind="linear", roles=("down",), shape=(8, 6))


@dataclass(frozen=True)
class Case:
    """oracle(W, b, tensors by name, all as nested lists) -> W', b'."""

    name: str
    method: OnLayers
    site: Site
    oracle: Callable[[Matrix, list[float], dict[str, Matrix]], tuple[Matrix, list[float]]]


def _whole(tensors: dict[str, Matrix], name: str) -> Matrix:
    """The matrix that is stored whole or as its two factors."""
    whole = tensors.get(f"{name}.whole")
    return whole if whole is not None else lokr.times(tensors[f"{name}.B"], tensors[f"{name}.A"])


CASES = (
    Case("ia3-values", IA3(), VALUE, lambda W, b, t: ia3.on_outputs(W, b, t["l"])),
    Case("ia3-mlp", IA3(), DOWN, lambda W, b, t: ia3.on_inputs(W, b, t["l"])),
    Case("hira", HiRA(r=2), VALUE, lambda W, b, t: (hira.weight(W, **t), b)),
    Case("vera", VeRA(r=3), VALUE, lambda W, b, t: (vera.weight(W, t["pair.A"], t["pair.B"], t["b"], t["d"]), b)),
    Case("multilora", MultiLoRA(n=3, r=2), VALUE, lambda W, b, t: (multilora.weight(W, 3, **t), b)),
    Case("loha", LoHa(r=2, alpha=5), VALUE, lambda W, b, t: (loha.weight(W, 5 / 2, **t), b)),
    Case("lokr", LoKr(r=1, alpha=5), VALUE, lambda W, b, t: (lokr.weight(W, 5, _whole(t, "C"), _whole(t, "D")), b)),
    Case(
        "lokr-both",
        LoKr(r=1, alpha=5, decompose_both=True, decompose_factor=4),
        VALUE,
        lambda W, b, t: (lokr.weight(W, 5, _whole(t, "C"), _whole(t, "D")), b),
    ),
    Case(
        "lokr-whole",
        LoKr(r=2, alpha=5),
        VALUE,
        lambda W, b, t: (lokr.weight(W, 5 / 2, _whole(t, "C"), _whole(t, "D")), b),
    ),
)


def noisy(module: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_forward_pass_and_the_merged_weight_are_the_papers(case: Case):
    base = noisy(nn.Linear(6, 8).double(), 2)
    start = Start(torch.Generator(), torch.device("cpu"), torch.float64, FrozenWeight.of(base))
    module = noisy(case.method.around(case.site)(start), 1)
    tensors = {name: value.tolist() for name, value in {**dict(module.named_buffers()), **_parameters(module)}.items()}
    W, b = case.oracle(base.weight.tolist(), base.bias.tolist(), tensors)
    x = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    expected = [
        [math.fsum(w * v for w, v in zip(row, token, strict=True)) + c for row, c in zip(W, b, strict=True)]
        for token in x.tolist()
    ]
    _near(module.merged(base.weight.detach()), W)
    _near(module.merged_bias(base.bias.detach()), b)
    _near(module(x, base, Pass()), expected)


def _parameters(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters())


def _near(found: Tensor, expected: list) -> None:
    """A few hundred sums and products in double precision, relative to the largest value."""
    there = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found.detach(), there, rtol=0, atol=1e-13 * float(there.abs().max()))
