"""Two routes in one batch: outputs and gradients of the separate runs."""

from typing import Any

import pytest
import torch

from lorica.adapter import AdapterFile, Bank, attach
from lorica.kernels import Noise
from lorica.methods.lora import LoRA
from lorica.models import ambient
from tiny_bases import BASES, Base, stir

METHODS = {"first": LoRA(r=3, alpha=8, dropout=0.2), "second": LoRA(r=2, alpha=5, target_modules="attention")}


def files(base: Base) -> dict[str, AdapterFile]:
    made = {}
    for seed, (name, method) in enumerate(METHODS.items()):
        attached = attach(base.build(), method, seed=seed)
        stir(attached.named_parameters(), std=0.2 + 0.1 * seed)
        made[name] = attached.file()
    return made


def gradients(bank: Bank) -> dict[str, list[torch.Tensor]]:
    found: dict[str, list[torch.Tensor]] = {}
    for name in METHODS:
        found[name] = []
        for _, parameter in bank.named_parameters(name):
            gradient: Any = parameter.grad
            found[name].append(torch.zeros_like(parameter) if gradient is None else gradient.clone())
            parameter.grad = None
    return found


@pytest.mark.parametrize("base", BASES, ids=str)
def test_two_routes_in_one_batch_give_the_gradients_of_separate_runs(base: Base):
    bank = Bank(base.build())
    for name, file in files(base).items():
        bank.add(name, file, trainable=True)
    for held in bank.adapters.values():
        for module in held.modules.values():
            module.train()
    choices, noise = ["first", None, "second"], Noise(1, 2, torch.tensor([5, 6, 7]))
    with ambient.entered(ambient.Pass(noise=noise)), bank.use(choices) as model:
        together = base.output(model)
        base.loss(model).backward()
    mixed = gradients(bank)
    for row, choice in enumerate(choices):
        with ambient.entered(ambient.Pass(noise=noise)), bank.use(choice) as model:
            torch.testing.assert_close(base.output(model)[row], together[row], rtol=0, atol=1e-10)
            if choice is None:
                continue
            base.loss(model, slice(row, row + 1)).backward()
        alone = gradients(bank)
        largest = max(gradient.abs().max() for gradient in alone[choice])
        assert largest > 1e-3
        for got, expected in zip(mixed[choice], alone[choice], strict=True):
            assert (got - expected).abs().max() <= 1e-12 * largest
    bank.detach()
