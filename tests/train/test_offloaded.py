"""Inputs of recomputed blocks that wait elsewhere: counted, and the same bits as those that are kept."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

from campaign.tiny_run import base, dataset, lora
from lorica.adapter import attach
from lorica.kernels.elsewhere import Store
from lorica.methods import LoRA
from lorica.tasks.causal_lm import CausalLanguageModelling
from lorica.train import TrainConfig, fit

LAYERS, STEPS = 4, 3


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of what waited elsewhere."""
    shapes: list[tuple[int, ...]] = []
    real = Store.keep

    def keep(self: Store, tensor: Tensor, passing: bool = False) -> Any:
        shapes.append(tuple(tensor.shape))
        return real(self, tensor, passing)

    monkeypatch.setattr(Store, "keep", keep)
    return shapes


def learned(**settings: Any) -> dict[str, Tensor]:
    attached = attach(base(layers=LAYERS), lora(), seed=1)
    config = TrainConfig(measure=False, steps=STEPS, rows_per_step=6, learning_rate=1e-2, **settings)
    fit(attached, CausalLanguageModelling(), dataset(), None, config)
    return {key: tensor.clone() for key, tensor in attached.state().items()}


@pytest.mark.parametrize(("blocks", "waiting"), [(True, LAYERS - 1), (3, 2), ("auto", 0)])
def test_inputs_wait_elsewhere_and_no_bit_changes(blocks: Any, waiting: int, kept: list[tuple[int, ...]]) -> None:
    """Nothing is learned below the first block, so that its input is no part of what the backward pass needs."""
    plain = learned()
    assert not kept
    away = learned(gradient_checkpointing=blocks, offload_activations=True)
    assert len(kept) == STEPS * waiting
    assert all(shape[1] == 32 for shape in kept)
    assert plain.keys() == away.keys()
    assert all(torch.equal(plain[key], away[key]) for key in plain)


def test_inputs_of_blocks_of_transformers_wait_too(kept: list[tuple[int, ...]]) -> None:
    config = BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48)
    torch.manual_seed(0)
    model: nn.Module = BertForMaskedLM(config).eval()
    ids = torch.arange(20).view(2, 10)
    found = []
    for store in (None, Store(torch.device("cpu"))):
        attached = attach(model, LoRA(r=4), seed=1)
        attached.checkpoint(None, store)
        model(input_ids=ids, labels=ids).loss.backward()
        found.append({name: parameter.grad for name, parameter in attached.named_parameters()})
        attached.detach()
    assert len(kept) == 2
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])  # type: ignore[arg-type]
