"""AdaLoRA's modules and its choice of singular values are what the paper says, term by term."""

import pytest
import torch
from adalora import Allocator, adalora, budget, orthogonality
from philox import kept
from torch import nn

from lorica.kernels import Noise, site_id
from lorica.methods.adalora import AdaLoRA, AdaLoRALinear
from lorica.methods.contract import Start
from lorica.methods.rank_budget import Schedule
from lorica.models.ambient import Pass
from lorica.site import Site

SITES = [Site(name=f"layers.{n}.q", kind="linear", shape=shape) for n, shape in enumerate([(5, 6), (4, 7), (6, 4)])]
CONFIG = AdaLoRA(r=2, init_r=4, alpha=7, tinit=2, tfinal=3, beta1=0.8, beta2=0.7, orth_reg_weight=0.3)


def start() -> Start:
    return Start(torch.Generator().manual_seed(0), torch.device("cpu"), torch.float64)


def noisy(module: nn.Module, seed: int = 1) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


def modules() -> dict[str, AdaLoRALinear]:
    return {site.name: noisy(AdaLoRALinear(CONFIG, site, start()), n) for n, site in enumerate(SITES)}


def lists(module: AdaLoRALinear, gradient: bool = False) -> dict:
    P, L, Q = (p.grad if gradient else p.detach() for p in (module.P, module.L, module.Q))
    return {"P": P.tolist(), "l": L[:, 0].tolist(), "Q": Q.tolist()}


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_linear_is_equation_3(dropout: float):
    config, site = AdaLoRA(r=2, init_r=3, alpha=8, dropout=dropout), SITES[0]
    module, base = noisy(AdaLoRALinear(config, site, start())), noisy(nn.Linear(6, 5).double())
    x = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    noise = Noise(7, 9, torch.tensor([100, 2**31]), torch.tensor([3, 4]))
    got = module(x, base, Pass(noise=noise))
    for token, (row, position) in enumerate([(100, 3), (2**31, 4)]):
        mask = kept(7, 9, row, position, site_id(site.name), 6, dropout) if dropout else None
        expected = adalora(x[token].tolist(), base.weight.tolist(), base.bias.tolist(), lists(module), 8 / 3, mask)
        torch.testing.assert_close(got[token], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-13)


def test_the_start_is_the_authors_codes():
    module = AdaLoRALinear(AdaLoRA(r=4), Site(name="q", kind="linear", shape=(400, 300)), start())
    assert module.P.shape == (400, 6)  # 1.5 times 4
    assert not module.L.any()
    assert abs(float(module.P.detach().std()) - 0.02) < 0.001
    assert abs(float(module.Q.detach().std()) - 0.02) < 0.001


def test_the_term_of_the_loss_is_the_mean_of_unsquared_norms():
    built = modules()
    found = CONFIG.life(built).extra_loss()
    assert found is not None
    expected = 0.3 * orthogonality([lists(module) for module in built.values()])
    assert float(found.detach()) == pytest.approx(expected, rel=1e-13)


def test_its_gradient_at_orthonormal_vectors_is_zero_and_finite():
    """The norm itself has none there."""
    built = {"q": AdaLoRALinear(CONFIG, SITES[0], start())}
    with torch.no_grad():
        built["q"].P.copy_(torch.eye(5, 4))
        built["q"].Q.copy_(torch.eye(4, 6))
    CONFIG.life(built).extra_loss().backward()
    assert not built["q"].P.grad.any()
    assert not built["q"].Q.grad.any()


def test_scores_and_choices_of_a_run_are_equations_8_to_12():
    """Gradients and updates are noise; what is masked, step by step, is what the loops mask."""
    built, total = modules(), 12
    life, oracle = CONFIG.life(built), Allocator([lists(module) for module in built.values()], 0.8, 0.7)
    generator = torch.Generator().manual_seed(5)
    for step in range(1, total + 1):
        for module in built.values():
            for parameter in module.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.data.sub_(0.1 * parameter.grad)
        if step <= total - 3:
            oracle.see([lists(m) for m in built.values()], [lists(m, gradient=True) for m in built.values()])
        life.extra_loss()
        life.after_step(step, total)
        expected = oracle.triplets()
        torch.testing.assert_close(life.scores(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)
        left = torch.cat([module.L[:, 0] != 0 for module in built.values()]).tolist()
        assert left == oracle.kept(budget(step, 12, 6, 2, 3, total)), f"step {step}"


def test_the_budget_is_the_corrected_curve():
    """144 values to 96 in 1000 steps: equation 12 as printed begins at 258.0 and stands at 102.0 when it should end."""
    schedule = Schedule(144, 96, 100, 700)
    found = [schedule.budget(step) for step in range(1, 1001)]
    assert found == [budget(step, 144, 96, 100, 300, 1000) for step in range(1, 1001)]
    assert found[:100] == [144] * 100
    assert found == sorted(found, reverse=True)
    assert found[699:] == [96] * 301
    assert found[398] == int(96 + 48 * (1 - 299 / 600) ** 3)

    def printed(step: int) -> float:
        return 96 + 48 * (1 - (step - 100 - 300) / (1000 - 100 - 300)) ** 3

    assert (round(printed(100), 1), round(printed(700), 1)) == (258.0, 102.0)
