"""What an optimiser keeps is what the plan says it keeps."""

from math import prod

import pytest

from campaign.tiny_run import base
from lorica import adapter, api
from lorica.adapter import attach
from lorica.budget.memory import Workload, memory_of
from lorica.methods import LoRA
from lorica.models import shapes_only
from lorica.train import TrainConfig
from lorica.train.optimizers import OPTIMIZERS, optimizer

METHOD = LoRA(
    r=3, alpha=8, target_modules=["embed_tokens", "q_proj", "up_proj"], bias="all", modules_to_save=["model.norm"]
)


@pytest.mark.parametrize(
    "entry",
    [{"name": name} for name in OPTIMIZERS] + [{"name": "sgd", "momentum": 0.0}],
    ids=lambda entry: "-".join(map(str, entry.values())),
)
def test_the_plan_counts_the_bytes_of_the_state(entry):
    config = OPTIMIZERS[entry["name"]][0](**entry)
    attached = attach(base(), METHOD)
    roles = {key: tensor.role for key, tensor in attached.plan.tensors.items()}
    state = optimizer(config, dict(attached.named_parameters()), roles=roles).state()
    counts = sum(tensor.nbytes for key, tensor in state.items() if key.endswith(".step"))
    planned = memory_of(attached.plan, Workload(), "cpu", decoder=True, moments=config.elements).optimizer
    assert planned == sum(tensor.nbytes for tensor in state.values()) - counts


def test_adamw_keeps_two_lion_one_sgd_none_and_adafactor_rows_and_columns():
    shapes = shapes_only("embedded", None)
    trained = adapter.plan(shapes, LoRA(r=8))

    def kept(entry):
        train = TrainConfig(learning_rate=1e-3, optimizer=entry)
        return api.plan(shapes, LoRA(r=8), train=train).memory.optimizer

    one = 4 * trained.trainable_parameters
    assert kept("adamw") == 2 * one
    assert kept("lion") == kept("sgd") == kept("muon") == one
    assert kept({"name": "sgd", "momentum": 0}) == 0
    assert kept("adafactor") == 4 * sum(sum(tensor.shape) for tensor in trained.tensors.values())
    assert all(prod(tensor.shape) > sum(tensor.shape) for tensor in trained.tensors.values())
