"""Under autocast, as HF Trainer has it with `bf16=True`, a float32 base learns the same, but for rounding."""

import pytest
import torch
from torch import Tensor

import lorica
from lorica.methods import METHODS, Method
from tiny_bases import BERT, GPT2, LLAMA, NF4, Base, stir

NAMES = ("lora", "dora", "lora-fa", "adalora", "vera", "hira", "loha", "lokr", "multilora", "full")
CASES = [
    (base, METHODS[name]()) for base in (LLAMA, GPT2, BERT, NF4) for name in NAMES if base is not NF4 or name != "full"
]
CASES += [(base, METHODS["lora"](dropout=0.2)) for base in (LLAMA, GPT2, BERT, NF4)]


def gradient(base: Base, method: Method, dtype: torch.dtype, autocast: bool) -> Tensor:
    attached = lorica.attach(base.build(dtype), method)
    stir(attached.named_parameters())
    attached.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = base.loss(attached.model)
    loss.backward()
    made = [parameter.grad for parameter in attached.parameters()]
    assert all(grad is not None for grad in made)
    return torch.cat([grad.float().flatten() for grad in made if grad is not None])


@pytest.mark.parametrize(("base", "method"), CASES, ids=lambda each: getattr(each, "name", None))
def test_a_base_in_float32_learns_the_same_within_bfloat16(base: Base, method: Method) -> None:
    """Two blocks of some ten roundings each, in a random walk, forward and backward."""
    wanted = gradient(base, method, torch.float32, autocast=False)
    found = gradient(base, method, torch.float32, autocast=True)
    assert (found - wanted).norm() <= 2 * (2 * 10) ** 0.5 * torch.finfo(torch.bfloat16).eps * wanted.norm()
    assert not torch.equal(found, wanted), "autocast was not met"


@pytest.mark.parametrize("base", [LLAMA, GPT2, BERT], ids=lambda base: base.name)
def test_a_base_in_bfloat16_learns_the_same_bits(base: Base) -> None:
    found, wanted = (gradient(base, METHODS["lora"](), torch.bfloat16, autocast=on) for on in (True, False))
    assert torch.equal(found, wanted)
