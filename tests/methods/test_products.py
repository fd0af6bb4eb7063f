"""What is exact about methods that are products: LyCORIS' scaling lemma, sizes, and what a forward pass never makes."""

from collections.abc import Callable

import peft
import peft.tuners.hira.layer as hira_of_peft
import peft.tuners.lokr.layer as lokr_of_peft
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lorica.methods import IA3, HiRA, LoHa, LoKr, LoRA
from lorica.methods.contract import AroundLinear, Start
from lorica.methods.lokr import divisors
from lorica.methods.on_layers import OnLayers
from lorica.models.ambient import Pass
from lorica.site import Site

SITE = Site(name="layers.0.q", kind="linear", shape=(8, 12))
GAMMA = 7.0
FACTORED: dict[str, tuple[Callable[[float], OnLayers], int]] = {
    "lora": (lambda alpha: LoRA(r=3, alpha=alpha), 2),
    "loha": (lambda alpha: LoHa(r=3, alpha=alpha), 4),
    "lokr": (lambda alpha: LoKr(r=1, alpha=alpha), 3),
    "lokr-both": (lambda alpha: LoKr(r=1, alpha=alpha, decompose_both=True), 4),
}
"""Each with the number of its factors."""


def outputs(method: OnLayers, optimizer: str, starts: float, rate: float) -> list[Tensor]:
    """What the adapter answers in each of six steps of a regression, every factor `starts` times a fixed noise."""
    module = method.around(SITE)(Start(torch.Generator(), torch.device("cpu"), torch.float64))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(starts * 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    base = nn.Linear(12, 8, bias=False).double().requires_grad_(False)
    with torch.no_grad():
        base.weight.zero_()
    x, y = (torch.randn(16, n, generator=generator, dtype=torch.float64) for n in (12, 8))
    steps = {"adam": lambda p: torch.optim.Adam(p, rate, eps=0), "sgd": lambda p: torch.optim.SGD(p, rate)}
    optimize = steps[optimizer](module.parameters())
    seen = []
    for _ in range(6):
        out = module(x, base, Pass())
        seen.append(out.detach())
        optimize.zero_grad()
        (out - y).square().mean().backward()
        optimize.step()
    return seen


@pytest.mark.parametrize(("optimizer", "power", "rate"), [("adam", 1, 1e-2), ("sgd", 2, 1e-2)])
@pytest.mark.parametrize("name", FACTORED)
def test_a_larger_update_is_larger_starts_and_a_larger_rate(name: str, optimizer: str, power: int, rate: float):
    """Lemma B.1 of LyCORIS: gamma on dW is gamma^(1/m) on the start of each of the m factors, and gamma^(c/m) on the
    learning rate, c = 1 for Adam without eps and 2 for gradient descent."""
    method, factors = FACTORED[name]
    scaled = outputs(method(5 * GAMMA), optimizer, 1.0, rate)
    started = outputs(method(5.0), optimizer, GAMMA ** (1 / factors), rate * GAMMA ** (power / factors))
    for first, second in zip(scaled, started, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-12 * float(first.abs().max()))
    assert not torch.allclose(scaled[0], scaled[-1], rtol=1e-3), "nothing was learned, so nothing was compared"
    other = outputs(method(5.0), optimizer, GAMMA ** (1 / factors), rate)
    assert not torch.allclose(scaled[-1], other[-1], rtol=1e-6), "the learning rate plays no part"


def test_the_small_matrix_of_a_kronecker_product_is_as_large_as_in_peft():
    for size in (*range(1, 61), 768, 4096, 11008):
        for factor in (-1, *range(1, 21)):
            assert divisors(size, factor) == lokr_of_peft.factorization(size, factor), (size, factor)


class Largest(TorchDispatchMode):
    """The most elements that any operation gave, views of `known` aside."""

    def __init__(self, known: Tensor) -> None:
        super().__init__()
        self.known, self.numel = known.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.untyped_storage().data_ptr() != self.known:
            self.numel = max(self.numel, result.numel())
        return result


@pytest.mark.parametrize("method", [LoHa(r=2, alpha=5), LoKr(r=2, alpha=5)], ids=lambda method: method.kind)
def test_no_matrix_of_the_weight_s_size_is_made_forward_or_backward(method: OnLayers):
    site = Site(name="q", kind="linear", shape=(96, 128))
    base = nn.Linear(128, 96).requires_grad_(False)
    module = method.around(site)(Start(torch.Generator(), torch.device("cpu"), torch.float32))
    with Largest(base.weight) as forward:
        module(torch.randn(3, 128), base, Pass()).sum().backward()
    assert forward.numel < 96 * 128 / 4
    with Largest(base.weight) as merged:
        module.merged(base.weight)
    assert merged.numel == 96 * 128


def kept(module: nn.Module, base: nn.Linear) -> int:
    """The largest tensor that is kept for the backward pass, the base's own weight aside, in elements."""
    sizes = [0]
    own = base.weight.untyped_storage().data_ptr()

    def note(tensor: Tensor) -> Tensor:
        sizes.append(0 if tensor.untyped_storage().data_ptr() == own else tensor.numel())
        return tensor

    x = torch.randn(3, base.in_features, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        module(x, base, Pass()) if isinstance(module, AroundLinear) else module(x)
    return max(sizes)


def test_hira_keeps_its_input_and_factors_for_the_backward_pass_where_peft_keeps_a_matrix():
    base = nn.Linear(128, 96).requires_grad_(False)
    site = Site(name="q", kind="linear", shape=(96, 128))
    ours = HiRA(r=2).around(site)(Start(torch.Generator(), torch.device("cpu"), torch.float32))
    theirs = hira_of_peft.Linear(base, "default", peft.HiraConfig(r=2), r=2)
    assert kept(ours, base) == max(3 * 128, 2 * 128)
    assert kept(theirs, base) == 96 * 128


@pytest.mark.parametrize("inputs", [True, False])
def test_gains_near_one_count_in_half_precision(inputs):
    """In bfloat16 itself 1.003 is one; numbers times it move by a step or by none, 0.3 % on average."""
    method = IA3(target_modules=[SITE.name], feedforward_modules=[SITE.name] if inputs else [])
    module = method.around(SITE)(Start(torch.Generator(), torch.device("cpu"), torch.float32))
    base = nn.Linear(12, 8, bias=False).bfloat16().requires_grad_(False)
    x = torch.randn(500, 12, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.no_grad():
        before = module(x, base, Pass()).float()
        next(module.parameters()).fill_(1.003)
        after = module(x, base, Pass()).float()
    ratio = float((after * before).sum() / before.square().sum())
    assert ratio == pytest.approx(1.003, abs=1e-3)
