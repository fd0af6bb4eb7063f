"""Trained parameters of known models, from their shapes alone: what papers and model cards print."""

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, RobertaConfig, RobertaModel

from lorica.adapter import plan
from lorica.budget.memory import Workload, memory_of
from lorica.methods import LoRA
from lorica.models import sites
from lorica.models.causal_lm import CausalLM
from lorica.site import Site
from lorica.train.optimizers import OPTIMIZERS


def llama(d, f, layers, heads, vocabulary=32000, kv_heads=None):
    config = LlamaConfig(
        hidden_size=d,
        intermediate_size=f,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads or heads,
        vocab_size=vocabulary,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        return CausalLM(config)


def encoder(kind, config, **sizes):
    with torch.device("meta"):
        return kind(config(**sizes), add_pooling_layer=False)


BASES = {
    "Llama-2-7B": lambda: llama(4096, 11008, 32, 32),
    "Llama-2-13B": lambda: llama(5120, 13824, 40, 40),
    "Llama-3.1-8B": lambda: llama(4096, 14336, 32, 32, 128256, 8),
    "RoBERTa-base": lambda: encoder(RobertaModel, RobertaConfig, vocab_size=50265),
    "RoBERTa-large": lambda: encoder(
        RobertaModel,
        RobertaConfig,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
    ),
    "MiniLM-L6": lambda: encoder(
        BertModel, BertConfig, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    ),
}
MLP = ["gate_proj", "up_proj", "down_proj"]
COUNTS = [
    ("Llama-2-7B", 8, "minimal", 4_194_304),
    ("Llama-2-7B", 8, "attention", 8_388_608),
    ("Llama-2-7B", 8, "all-linear", 19_988_480),
    ("Llama-2-7B", 64, "all-linear", 159_907_840),
    ("Llama-2-13B", 64, "all-linear", 250_347_520),
    ("Llama-3.1-8B", 1, MLP, 1_769_472),
    ("Llama-3.1-8B", 1, "attention", 851_968),
    ("RoBERTa-base", 8, "minimal", 294_912),
    ("RoBERTa-large", 8, "minimal", 786_432),
    ("MiniLM-L6", 8, "minimal", 73_728),
    ("MiniLM-L6", 8, "all-linear", 331_776),
]


@pytest.fixture(scope="module")
def shapes():
    return {name: sites(make()) for name, make in BASES.items()}


@pytest.mark.parametrize(("name", "r", "targets", "count"), COUNTS)
def test_lora_trains_as_many_as_are_printed(shapes, name, r, targets, count):
    assert plan(shapes[name], LoRA(r=r, alpha=3 * r, target_modules=targets)).trainable_parameters == count


def test_llama_2_7b_counts_as_its_card_and_in_percent(shapes):
    found = plan(shapes["Llama-2-7B"], LoRA(r=8, target_modules="minimal"))
    assert found.base_parameters == 6_738_415_616
    assert (found.total_parameters, round(found.trainable_percent, 4)) == (6_742_609_920, 0.0622)
    attention = plan(shapes["Llama-2-7B"], LoRA(r=8, target_modules="attention"))
    assert (attention.total_parameters, round(attention.trainable_percent, 4)) == (6_746_804_224, 0.1243)
    everything = plan(shapes["Llama-2-7B"], LoRA(r=8))
    assert round(everything.trainable_percent, 4) == 0.2958


@pytest.mark.parametrize("r", [8, 64])
def test_the_page_on_optimisers_prints_what_the_plan_counts(shapes, r):
    found = plan(shapes["Llama-2-7B"], LoRA(r=r))
    kept = {
        name: memory_of(found, Workload(), "cpu", decoder=True, moments=config().elements).optimizer / 1e6
        for name, (config, _) in OPTIMIZERS.items()
    }
    assert kept["lion"] == kept["muon"] == kept["sgd"]
    row = f"| r={r} | {kept['adamw']:.1f} MB | {kept['lion']:.1f} MB | 0 MB | {kept['adafactor']:.1f} MB |"
    assert row in (Path(__file__).parents[2] / "docs/optimisers.md").read_text()


def test_gpt_3_counts_as_in_the_lora_paper():
    """96 layers of width 12,288: 4.7 M of 175 B at rank 1 of q and v, 18.9 M at 4, 37.7 M at 8."""
    linears = [
        Site(name=f"layers.{layer}.{role}", kind="linear", roles=(role,), shape=(12288, 12288), layer=layer)
        for layer in range(96)
        for role in "qkvo"
    ]
    counts = {r: plan(linears, LoRA(r=r, target_modules="minimal")).trainable_parameters for r in (1, 4, 8)}
    assert counts == {1: 4_718_592, 4: 18_874_368, 8: 37_748_736}
