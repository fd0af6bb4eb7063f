"""Adapters travel between PEFT and Lorica in both directions, with noise in every tensor and alpha other than r."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
import transformers as hf
from peft import PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft_bases import BASES, Base, add_noise, distance, only_their_own_warnings, rounding
from safetensors.torch import load_file

from lorica import adapter
from lorica.methods import LoRA
from lorica.models import load_base

TENSORS = "adapter_model.safetensors"


def theirs(base: Base, folder):
    """The transformers model of a folder, in evaluation mode."""
    kind = getattr(hf, json.loads((folder / "config.json").read_text())["architectures"][0])
    with only_their_own_warnings():
        return kind.from_pretrained(folder).eval()


@pytest.fixture(params=BASES, ids=lambda base: base.name)
def base(request):
    return request.param


@pytest.fixture
def folder(base, tmp_path):
    return base.saved(tmp_path / "base")


def with_peft(base, folder):
    """PEFT's adapter on the transformers model, noise in every trained tensor."""
    with only_their_own_warnings():
        model = get_peft_model(theirs(base, folder), base.peft_config()).eval()
    add_noise([p for p in model.parameters() if p.requires_grad])
    return model


def test_what_peft_saves_loads_here_and_computes_the_same(base, folder, tmp_path):
    inputs = base.inputs()
    with only_their_own_warnings(), torch.no_grad():
        before = theirs(base, folder)(**inputs).logits
        model = with_peft(base, folder)
        expected = model(**inputs).logits
    assert distance(expected, before) > 0.1
    save_with_peft(model, tmp_path / "adapter")
    ours = load_base(folder)
    with torch.no_grad():
        untouched = ours(**inputs).logits
        attached = adapter.load(ours, tmp_path / "adapter")
        assert distance(attached(**inputs).logits, expected) < rounding(ours)
        assert torch.equal(attached.detach()(**inputs).logits, untouched)


def test_all_biases_and_a_module_saved_whole_load_together(tmp_path):
    """PEFT then writes the frozen original's bias, and the trained one twice."""
    base = next(base for base in BASES if base.name == "bert")
    base = replace(base, adapter={**base.adapter, "bias": "all"})
    folder = base.saved(tmp_path / "base")
    model = with_peft(base, folder)
    with torch.no_grad():
        expected = model(**base.inputs()).logits
    save_with_peft(model, tmp_path / "adapter")
    ours = load_base(folder)
    with torch.no_grad():
        found = adapter.load(ours, tmp_path / "adapter")(**base.inputs()).logits
    assert distance(found, expected) < rounding(ours)


def save_with_peft(model, folder):
    with only_their_own_warnings():
        warnings.filterwarnings("ignore", message="Setting `save_embedding_layers` to `True`")
        warnings.filterwarnings("ignore", message="Could not find a config file")
        model.save_pretrained(folder)


def test_what_is_saved_here_loads_in_peft_with_no_key_missing_or_left_over(base, folder, tmp_path):
    inputs = base.inputs()
    ours = load_base(folder)
    attached = adapter.attach(ours, LoRA.from_peft(base.peft_config()))
    add_noise(attached.parameters())
    with torch.no_grad():
        expected = attached(**inputs).logits
    attached.save(tmp_path / "adapter")
    with only_their_own_warnings(), torch.no_grad():
        model = PeftModel.from_pretrained(theirs(base, folder), tmp_path / "adapter").eval()
        assert distance(model(**inputs).logits, expected) < rounding(ours)
        config = PeftConfig.from_pretrained(tmp_path / "adapter")
        config.inference_mode = False
        blank = get_peft_model(theirs(base, folder), config)
        told = set_peft_model_state_dict(blank, load_file(tmp_path / "adapter" / TENSORS))
    assert told.unexpected_keys == []
    assert {name for name, p in blank.named_parameters() if p.requires_grad}.isdisjoint(told.missing_keys)


def test_a_round_trip_returns_every_tensor_to_the_bit(base, folder, tmp_path):
    save_with_peft(with_peft(base, folder), tmp_path / "theirs")
    adapter.load(load_base(folder), tmp_path / "theirs").save(tmp_path / "ours")
    before, after = load_file(tmp_path / "theirs" / TENSORS), load_file(tmp_path / "ours" / TENSORS)
    surplus = {key for key in before if LoRA.surplus(key)}
    assert after.keys() == before.keys() - surplus
    assert all(torch.equal(after[key], before[key]) for key in after)


def test_the_config_says_in_peft_what_it_said_here(base, folder, tmp_path):
    adapter.attach(load_base(folder), LoRA.from_peft(base.peft_config())).save(tmp_path / "adapter")
    written, asked = PeftConfig.from_pretrained(tmp_path / "adapter"), base.peft_config()
    for name in ("r", "lora_alpha", "use_rslora", "bias", "rank_pattern", "alpha_pattern", "lora_dropout", "task_type"):
        assert getattr(written, name) == getattr(asked, name), name
    assert (written.modules_to_save or []) == (asked.modules_to_save or [])
