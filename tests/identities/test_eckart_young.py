"""A LoRA of rank r learns the best rank-r part of a linear teacher, and nothing better: Eckart & Young 1936.

y = (W0 + D) x with isotropic x: the expected loss is ||D - s B A||_F^2, whose least value is the sum of the squared
singular values of D beyond the r-th.
"""

import pytest
import torch
from torch import nn

from lorica.adapter import attach
from lorica.methods import LoRA
from lorica.train.optimizers.adamw import AdamW, AdamWConfig

D, STEPS, RATE = 16, 600, 6e-2
SINGULAR = [3.0, 2.0, 1.5, 1.0] + [0.0] * (D - 4)


def orthogonal(seed):
    noise = torch.randn(D, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(noise)[0]


class Student(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(D, D, bias=False).double()

    def forward(self, x):
        return self.proj(x)


def converged(r):
    """The loss over a whole orthonormal basis, which is the expectation over isotropic inputs."""
    torch.manual_seed(4)
    model = Student()
    difference = orthogonal(0) @ torch.diag(torch.tensor(SINGULAR, dtype=torch.float64)) @ orthogonal(1).T
    teacher = (model.proj.weight.detach() + difference).T
    attached = attach(model, LoRA(r=r, alpha=2.0 * r, target_modules=["proj"]), seed=r)
    optimizer = AdamW(dict(attached.named_parameters()), AdamWConfig(eps=1e-12))
    basis = torch.eye(D, dtype=torch.float64)
    losses = []
    for step in range(STEPS):
        loss = (attached(basis) - basis @ teacher).square().sum()
        loss.backward()
        losses.append(loss.item())
        optimizer.step(RATE * (1 - step / STEPS) ** 2)
        for parameter in attached.parameters():
            parameter.grad = None
    return losses[-1]


@pytest.mark.parametrize("r", range(1, 9))
def test_the_loss_left_over_is_the_tail_of_the_singular_values(r):
    tail = sum(value**2 for value in SINGULAR[r:])
    assert tail == {1: 7.25, 2: 3.25, 3: 1.0}.get(r, 0.0)
    assert converged(r) == pytest.approx(tail, abs=1e-9)
