"""What must be equal to the last bit under Adam without eps and decay, because it is one algorithm written twice.

    (alpha, A0, eta_A, eta_B) -> (alpha / (p q), p A0, p eta_A, q eta_B)      Schulman et al. 2025, LoRA Without Regret
    LoRA+ at (eta, ratio)     =  LoRA from sqrt(ratio) A0 at sqrt(ratio) eta

Factors that are powers of two change no rounding.
"""

import pytest
import torch

from campaign.tiny_run import base, dataset
from lorica.adapter import attach
from lorica.methods import LoRA
from lorica.tasks import TASKS
from lorica.train import TrainConfig, fit
from lorica.train.optimizers.adamw import AdamW, AdamWConfig

NO_EPS = 1e-300
"""Lost beside any root of a second moment in double precision; at zero gradient, where A starts, 0 / NO_EPS is 0."""
DATA = dataset(8)


def adapted(alpha=12.0, scale_of_A=1.0, **options):
    """In double precision, as its base."""
    attached = attach(base(torch.float64), LoRA(r=4, alpha=alpha, **options), seed=2)
    state = attached.state()
    attached.load_state({key: value * scale_of_A if ".lora_A." in key else value for key, value in state.items()})
    return attached


def updates(attached):
    """s B A of every site."""
    factors = {name: module.low_rank() for (name, _), module in attached.modules.items()}
    return {name: product.scale * (product.B.detach() @ product.A.detach()) for name, product in factors.items()}


def trajectory(attached, rate_A, rate_B, steps=8):
    """The updates after each step of a plain loop, each factor at a rate of its own."""
    parameters = dict(attached.named_parameters())
    rates = {key: rate_A if ".lora_A." in key else rate_B for key in parameters}
    optimizer = AdamW(parameters, AdamWConfig(eps=NO_EPS), factors=rates)
    seen = []
    for step in range(steps):
        batch = TASKS["causal_lm"].batch(DATA.examples[step % 4 : step % 4 + 4], device=torch.device("cpu"))
        TASKS["causal_lm"].loss(attached.model, batch).backward()
        optimizer.step(1.0)
        for parameter in parameters.values():
            parameter.grad = None
        seen.append(updates(attached))
    return seen


@pytest.mark.parametrize(("p", "q", "bound"), [(2.0, 4.0, 0.0), (0.5, 8.0, 0.0), (3.0, 0.7, 1e-10)])
def test_two_of_four_numbers_of_lora_are_free(p, q, bound):
    one = trajectory(adapted(alpha=12.0), 1e-2, 3e-2)
    other = trajectory(adapted(alpha=12.0 / (p * q), scale_of_A=p), p * 1e-2, q * 3e-2)
    for left, right in zip(one, other, strict=True):
        for name, update in left.items():
            assert (update - right[name]).abs().max() <= bound * update.abs().max(), name
    moved = max(float(update.abs().max()) for update in one[-1].values())
    assert moved > 0.1


def test_scaling_one_of_the_four_alone_is_another_run():
    one = trajectory(adapted(), 1e-2, 3e-2, 3)[-1]
    for alpha, scale, rate_A, rate_B in [(6.0, 1.0, 1e-2, 3e-2), (12.0, 2.0, 1e-2, 3e-2), (12.0, 1.0, 2e-2, 3e-2)]:
        other = trajectory(adapted(alpha, scale), rate_A, rate_B, 3)[-1]
        assert any((update - other[name]).abs().max() > 1e-3 * update.abs().max() for name, update in one.items())


def run(attached, **settings):
    """No clipping: the norm of a gradient is not the same in both parametrisations."""
    config = TrainConfig(steps=8, rows_per_step=4, schedule="linear", clip=None, optimizer={"eps": NO_EPS}, **settings)
    done = fit(attached, TASKS["causal_lm"], DATA, None, config)
    return [line["loss"] for line in done.history], updates(attached)


@pytest.mark.parametrize("ratio", [4.0, 16.0])
def test_lora_plus_is_lora_from_a_larger_start(ratio):
    losses, plus = run(adapted(dropout=0.1), learning_rate=1e-3, lora_plus_ratio=ratio)
    root = ratio**0.5
    again, plain = run(adapted(dropout=0.1, scale_of_A=root), learning_rate=1e-3 * root)
    assert losses == again
    assert all(torch.equal(update, plain[name]) for name, update in plus.items())
    assert losses != run(adapted(dropout=0.1), learning_rate=1e-3)[0]
