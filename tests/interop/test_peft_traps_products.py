"""Where PEFT reads a config in its own way: what is saved here means the same there, or PEFT is not offered it."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft_bases import BASES, add_noise, distance, rounding
from test_peft_both_ways import theirs
from test_peft_methods_products import quietly

from lorica import adapter
from lorica.methods import IA3, Method
from lorica.models import load_base


def base_named(name: str):
    return next(base for base in BASES if base.name == name)


def saved(base, method: Method, tmp_path: Path):
    """An adapter on the base with noise in every tensor, its folder written, and what it answers."""
    ours = load_base(base.saved(tmp_path / "base"))
    attached = adapter.attach(ours, method)
    add_noise(attached.parameters())
    attached.save(tmp_path / "adapter")
    with torch.no_grad():
        return ours, attached(**base.inputs()).logits


def config_of(folder: Path) -> dict:
    return json.loads((folder / "adapter_config.json").read_text())


@pytest.mark.parametrize(("side", "as_list"), [(("wo",), True), (("o",), False)], ids=["a list", "full paths"])
def test_gains_on_inputs_are_where_they_were_meant_although_peft_matches_names_without_a_dot(side, as_list, tmp_path):
    """T5: for PEFT `o` is also the end of `wo`, so a list cannot name one and not the other."""
    base = base_named("t5")
    ours, expected = saved(base, IA3(target_modules=("v", "o", "wo"), feedforward_modules=side), tmp_path)
    assert isinstance(config_of(tmp_path / "adapter")["feedforward_modules"], list) is as_list
    with quietly(), torch.no_grad():
        model = PeftModel.from_pretrained(theirs(base, tmp_path / "base"), tmp_path / "adapter").eval()
        assert distance(model(**base.inputs()).logits, expected) < rounding(ours)
        again = adapter.load(load_base(tmp_path / "base"), tmp_path / "adapter")
        assert torch.equal(again(**base.inputs()).logits, expected)
