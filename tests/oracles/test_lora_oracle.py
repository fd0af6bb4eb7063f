"""LoRA's modules compute what the paper says, term by term."""

import pytest
import torch
from lora import embedding, lora, scale
from philox import kept
from torch import nn

from lorica.kernels import Noise, site_id
from lorica.methods.contract import Start
from lorica.methods.lora import LoRA, LoRAEmbedding, LoRALinear
from lorica.models.ambient import Pass
from lorica.site import Site

SITE = Site(name="layers.0.q", kind="linear", shape=(5, 6))
TABLE = Site(name="embed", kind="embedding", shape=(9, 4))


def start() -> Start:
    return Start(torch.Generator().manual_seed(0), torch.device("cpu"), torch.float64)


def noisy(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_linear_is_equation_3(rslora: bool, dropout: float):
    config = LoRA(r=3, alpha=8, dropout=dropout, rslora=rslora)
    module, base = noisy(LoRALinear(config, SITE, start())), noisy(nn.Linear(6, 5).double())
    x = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    noise = Noise(7, 9, torch.tensor([100, 2**31]), torch.tensor([3, 4]))
    got = module(x, base, Pass(noise=noise))
    lists = [t.tolist() for t in (base.weight, base.bias, module.A, module.B)]
    for token, (row, position) in enumerate([(100, 3), (2**31, 4)]):
        mask = kept(7, 9, row, position, site_id(SITE.name), 6, dropout) if dropout else None
        expected = lora(x[token].tolist(), *lists, scale(8, 3, rslora), mask)
        torch.testing.assert_close(got[token], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-13)


def test_dropout_is_off_in_evaluation():
    module, base = noisy(LoRALinear(LoRA(r=3, alpha=8, dropout=0.4), SITE, start())), noisy(nn.Linear(6, 5).double())
    x = torch.ones(1, 6, dtype=torch.float64)
    noise = Noise(7, 9, torch.tensor([1]), torch.tensor([3]))
    assert torch.equal(module.eval()(x, base, Pass(noise=noise)), module.train()(x, base, Pass()))


def test_the_embedding_adds_a_column_of_A():
    module, base = noisy(LoRAEmbedding(LoRA(r=3, alpha=8), TABLE, start())), noisy(nn.Embedding(9, 4).double())
    got = module(torch.tensor([[2, 8]]), base, Pass())
    lists = [t.tolist() for t in (base.weight, module.A, module.B)]
    for place, token in enumerate([2, 8]):
        expected = torch.tensor(embedding(token, *lists, scale(8, 3)), dtype=torch.float64)
        torch.testing.assert_close(got[0, place], expected, rtol=0, atol=1e-13)


def test_the_starts_are_the_papers():
    """A uniform in +-1/sqrt(d_in) as in the authors' code, or of standard deviation 1/r; B zero."""
    site = Site(name="q", kind="linear", shape=(400, 300))
    uniform, gaussian = (LoRALinear(LoRA(r=4, init=init), site, start()) for init in ("kaiming", "gaussian"))
    assert uniform.A.abs().max() <= 300**-0.5
    assert abs(uniform.A.std() * 300**0.5 - 3**-0.5) < 0.03
    assert abs(gaussian.A.std() - 1 / 4) < 0.02
    assert not uniform.B.any()
    assert not gaussian.B.any()
