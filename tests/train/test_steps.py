"""An optimiser step means the same however it is cut, and is the step of the plain loop a reader would write."""

import numpy as np
import pytest
import torch
from torch import nn

from campaign.tiny_run import base, dataset, lora, noisy
from lorica.adapter import attach
from lorica.data import steps as schedule_of
from lorica.errors import DivergedError, RunError
from lorica.methods import LoRA
from lorica.models.causal_lm import IGNORED
from lorica.tasks import TASKS, CausalLanguageModelling
from lorica.train import TrainConfig, fit
from lorica.train.loss_scale import LossScale
from lorica.train.optimizers.adamw import AdamW, AdamWConfig
from lorica.train.step import Learner, gradients, optimiser_step

TASK = TASKS["causal_lm"]


def learner(attached, **options):
    attached.train(base=False)
    optimizer = AdamW(dict(attached.named_parameters()), AdamWConfig())
    settings = {"seed": 3, "device": torch.device("cpu"), "scale": LossScale(), "life": attached.life, "task": TASK}
    return Learner(model=attached.model, optimizer=optimizer, **{**settings, **options})


def cut(rows, size):
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def gradient_of(attached, micro_batches, step=4):
    losses, _ = gradients(learner(attached), micro_batches, step)
    made = {name: parameter.grad.clone() for name, parameter in attached.named_parameters()}
    return sum(losses).item(), made


def largest_difference(one, other):
    """Relative to the largest value of each tensor."""
    return max(float((one[name] - other[name]).abs().max() / other[name].abs().max()) for name in one)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("which", ["first", "partial last"])
def test_any_split_gives_the_gradient_of_the_whole_step(size, which):
    """Float64, dropout on, lengths 3 to 16; steps of 8 rows of 22, so the last has 6.  `whole` is packed into one
    flat row, and size 1 is every row unpacked."""
    data = dataset(22)
    plan = schedule_of(data.lengths, rows_per_step=8, epochs=1, seed=0)
    rows = [data[index] for index in plan[0 if which == "first" else 2]]
    assert len(rows) == (8 if which == "first" else 6)
    attached = noisy(attach(base(torch.float64, layers=2), lora()))
    loss, whole = gradient_of(attached, [rows])
    parted_loss, parted = gradient_of(attached, cut(rows, size))
    assert parted_loss == pytest.approx(loss, rel=1e-13)
    assert largest_difference(parted, whole) < 1e-12


def test_the_split_test_would_notice_losses_averaged_by_micro_batch():
    data = dataset(7)
    attached = noisy(attach(base(torch.float64), lora()))
    _, whole = gradient_of(attached, [data.examples])
    means = [gradient_of(attached, [part])[1] for part in cut(data.examples, 3)]
    averaged = {name: sum(mean[name] for mean in means) / len(means) for name in whole}
    assert largest_difference(averaged, whole) > 1e-3


def test_dropout_is_on_while_learning():
    data = dataset(8)
    attached = noisy(attach(base(torch.float64), lora()))
    dropped = gradient_of(attached, [data.examples], step=4)[0]
    assert dropped != gradient_of(attached, [data.examples], step=5)[0]
    attached.eval()
    undropped = TASK.evaluate(attached.model, data, micro_batch_tokens=10_000)["loss"]
    assert abs(dropped - undropped) > 1e-4


def test_a_step_can_be_made_again_under_another_split():
    """Gradients start from nothing, whatever an abandoned attempt has left."""
    data = dataset(6)
    attached = noisy(attach(base(torch.float64), lora()))
    _, once = gradient_of(attached, [data.examples])
    gradient_of(attached, cut(data.examples, 4)[:1])
    _, again = gradient_of(attached, cut(data.examples, 4))
    assert largest_difference(again, once) < 1e-12


def padded(rows):
    width = max(len(row) for row in rows)
    ids, mask = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int64)
    labels = np.full((len(rows), width), IGNORED)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row.input_ids, 1
        labels[i, : len(row)] = np.where(row.labels, row.input_ids, IGNORED)
    return {
        name: torch.from_numpy(value)
        for name, value in (("input_ids", ids), ("attention_mask", mask), ("labels", labels))
    }


def plain_loop(data, config):
    """What a reader would write: padded rows, transformers' call, torch's AdamW and clipping."""
    attached = attach(base(torch.float64), LoRA(r=4, alpha=12), seed=0)
    optimizer = torch.optim.AdamW(attached.parameters(), lr=config.learning_rate, weight_decay=0.0)
    losses = []
    for indices in schedule_of(data.lengths, rows_per_step=32, epochs=2, seed=config.seed):
        loss = attached(**padded([data[index] for index in indices])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(attached.parameters()), config.clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, attached.state()


def test_thirty_two_rows_a_step_equal_the_plain_loop():
    data = dataset(80, seed=4)
    config = TrainConfig(
        epochs=2, rows_per_step=32, micro_batch_tokens=64, learning_rate=1e-2, schedule="constant", warmup=0, clip=0.5
    )
    losses, state = plain_loop(data, config)
    attached = attach(base(torch.float64), LoRA(r=4, alpha=12), seed=0)
    run = fit(attached, TASK, data, None, config)
    assert [line["loss"] for line in run.history] == pytest.approx(losses, rel=1e-9)
    assert max(line["grad_norm"] for line in run.history) > 0.5
    for name, tensor in attached.state().items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=1e-9)


class Parameters(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(5, 3, generator=generator))
        self.vector = nn.Parameter(torch.randn(4, generator=generator))
        self.unused = nn.Parameter(torch.ones(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_optimiser_is_adamw_with_decay_on_matrices_alone(dtype):
    ours, theirs = Parameters().to(dtype), Parameters().to(dtype)
    config = AdamWConfig(betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    own = AdamW(dict(ours.named_parameters()), config)
    groups = [
        {"params": [theirs.matrix], "weight_decay": 0.1},
        {"params": [theirs.vector, theirs.unused], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-6)
    for step in range(6):
        for name in ("matrix", "vector"):
            for module in (ours, theirs):
                values = torch.arange(module.get_parameter(name).numel(), dtype=dtype) - 3.3 * step
                module.get_parameter(name).grad = values.sin().view_as(module.get_parameter(name))
        for group in reference.param_groups:
            group["lr"] = 0.1 / (step + 1)
        own.step(0.1 / (step + 1))
        reference.step()
    # Six updates of elements near 1, each rounded a handful of times.
    bound = 6 * 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(dict(ours.named_parameters()), dict(theirs.named_parameters()), rtol=bound, atol=bound)
    assert torch.equal(ours.unused, torch.ones(2, dtype=dtype))


def test_optimiser_state_goes_by_name_and_is_refused_when_names_differ():
    module = Parameters()
    own = AdamW(dict(module.named_parameters()), AdamWConfig())
    assert set(own.state()) == {
        f"{n}.{p}" for n in ("matrix", "vector", "unused") for p in ("exp_avg", "exp_avg_sq", "step")
    }
    wrong = {key.replace("matrix", "other"): value for key, value in own.state().items()}
    with pytest.raises(RunError, match=r"optimizer: .*differ"):
        own.load_state(wrong)


class PoisonedGradient(CausalLanguageModelling):
    """Row 2 has a finite loss and a gradient that is not: d sqrt(x) / dx at 0."""

    def loss(self, model, batch):
        loss = super().loss(model, batch)
        return loss + (loss * 0).sqrt() if 2 in batch.rows.tolist() else loss


def test_a_loss_that_is_not_finite_names_its_row_and_changes_nothing():
    model = base()
    with torch.no_grad():
        model.model.embed_tokens.weight[60] = float("inf")
    data = dataset(6)
    for example in data.examples:
        example.input_ids[example.input_ids == 60] = 0
    data[4].input_ids[1] = 60
    attached = noisy(attach(model, lora(target_modules=["q_proj", "v_proj"])))
    before = {name: tensor.clone() for name, tensor in attached.state().items()}
    with pytest.raises(DivergedError, match=r"step 9: the loss is not finite with train\.jsonl:5; .*learning_rate"):
        optimiser_step(learner(attached), cut(data.examples, 3), step=9, total=10, learning_rate=0.1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in attached.state().items())
    assert all(parameter.grad is None for parameter in attached.parameters())


def test_a_gradient_that_is_not_finite_names_its_row_and_changes_nothing():
    attached = noisy(attach(base(), lora()))
    before = {name: tensor.clone() for name, tensor in attached.state().items()}
    taking = learner(attached, task=PoisonedGradient())
    with pytest.raises(DivergedError, match=r"step 1: the gradient is not finite with train\.jsonl:3;"):
        optimiser_step(taking, cut(dataset(6).examples, 4), step=1, total=10, learning_rate=0.1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in attached.state().items())
    assert all(not tensor.any() for tensor in taking.optimizer.state().values())


def test_float16_overflows_are_skipped_and_halve_the_scale():
    attached = noisy(attach(base(), lora()))
    before = {name: tensor.clone() for name, tensor in attached.state().items()}
    taking = learner(attached, task=PoisonedGradient(), scale=LossScale(scale=4.0, fixed=False))
    taken = optimiser_step(taking, [dataset(6).examples], step=1, total=10, learning_rate=0.1)
    assert taken.grad_norm is None
    assert (taking.scale.scale, taking.scale.skipped) == (2.0, 1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in attached.state().items())
    taken = optimiser_step(taking, [dataset(2).examples], step=2, total=10, learning_rate=0.1)
    assert taken.grad_norm is not None
    assert any(not torch.equal(tensor, before[name]) for name, tensor in attached.state().items())
    optimiser_step(taking, [dataset(6).examples], step=3, total=10, learning_rate=0.1)
    with pytest.raises(DivergedError, match="overflow float16 at every loss scale"):
        optimiser_step(taking, [dataset(6).examples], step=4, total=10, learning_rate=0.1)


def test_a_float16_base_trains_in_float16_with_float32_adapters():
    attached = attach(base(torch.float16), lora(dropout=0.0))
    run = fit(attached, TASK, dataset(16), None, TrainConfig(steps=30, rows_per_step=16, learning_rate=2e-2))
    assert attached.model.model.norm.weight.dtype == torch.float16
    assert {tensor.dtype for tensor in attached.state().values()} == {torch.float32}
    skipped = [line for line in run.history if line["grad_norm"] is None]
    assert run.skipped_steps == len(skipped)
    assert run.history[-1]["loss"] < 0.8 * run.history[0]["loss"]


@pytest.mark.parametrize("scale", [2.0**10, 2.0**3])
def test_a_loss_scale_changes_no_gradient(scale):
    attached, rows = noisy(attach(base(), lora())), dataset(6).examples
    plain, scaled = learner(attached), learner(attached, scale=LossScale(scale=scale, fixed=False))
    one = optimiser_step(plain, [rows], step=1, total=10, learning_rate=1e-9).grad_norm
    other = optimiser_step(scaled, [rows], step=1, total=10, learning_rate=1e-9).grad_norm
    assert one == pytest.approx(other, rel=1e-5)


def test_an_adapter_outside_the_loss_is_an_error():
    attached = attach(base(), LoRA(r=2, alpha=3, target_modules=["q_proj"]))

    class Constant(CausalLanguageModelling):
        def loss(self, model, batch):
            return torch.ones((), requires_grad=True)

    with pytest.raises(RunError, match="no trained parameter takes part"):
        optimiser_step(learner(attached, task=Constant()), [dataset(2).examples], step=1, total=1, learning_rate=0.1)
