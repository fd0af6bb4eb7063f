"""Models of transformers quantised as they are read: tensor for tensor what they are when they are quantised whole."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lorica.errors import ModelError
from lorica.models import load_base
from lorica.models.foreign import load_foreign, read_config
from lorica.models.heads import Head
from lorica.models.quantised import Quantisation, QuantisedLinear, quantise
from lorica.models.stored import Entry
from tiny_bases import BART, BERT, OPT, T5, VIT, filled
from tiny_layers import GPT_OSS, MOE
from tiny_seeing import LLAVA

NF4 = Quantisation(form="nf4", double=True)
HEAD = Head(kind="sequence_classification", outputs=3)


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Buffers that no checkpoint holds among them."""
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return dict(named)


def computed_in(model: nn.Module) -> dict[str, torch.dtype]:
    held = {name: module for name, module in model.named_modules() if isinstance(module, QuantisedLinear)}
    assert held
    return {name: module.quantised_weight().dtype for name, module in held.items()}


def require_same(folder: Path, head: Head | None = None, form: Quantisation = NF4) -> Any:
    whole: Any = load_foreign(folder, read_config(folder), torch.bfloat16, head)
    quantise(whole, form)
    found: Any = load_foreign(folder, read_config(folder), torch.bfloat16, head, form)
    quantise(found, form)
    expected, here = tensors(whole), tensors(found)
    assert here.keys() == expected.keys()
    assert [name for name, tensor in here.items() if tensor.dtype != expected[name].dtype] == []
    assert [name for name, tensor in here.items() if not torch.equal(tensor, expected[name])] == []
    assert {name: type(m) for name, m in found.named_modules()} == {n: type(m) for n, m in whole.named_modules()}
    assert computed_in(found) == computed_in(whole)
    assert vars(found).keys() == vars(whole).keys()
    assert found.config.to_dict() == whole.config.to_dict()
    assert str(getattr(found, "generation_config", None)) == str(getattr(whole, "generation_config", None))
    return found


@pytest.mark.parametrize("base", [OPT, BART, BERT, T5, VIT, MOE, GPT_OSS, LLAVA], ids=repr)
def test_every_family_is_what_it_is_when_quantised_whole(base: Any, tmp_path: Path):
    filled(base.make()).save_pretrained(tmp_path)  # type: ignore[operator]
    require_same(tmp_path)


@pytest.mark.parametrize("outputs", [3, 5], ids=["drawn", "kept"])
def test_a_head_of_a_task_stays_dense(tmp_path: Path, outputs: int):
    filled(BERT.make()).save_pretrained(tmp_path)  # type: ignore[operator]
    found = require_same(tmp_path, replace(HEAD, outputs=outputs), Quantisation(form="int8"))
    assert type(found.classifier) is nn.Linear


def test_keys_of_older_checkpoints_are_renamed(tmp_path: Path):
    """Norms were called gamma and beta, and a checkpoint may hold the bare model."""
    filled(BERT.make()).save_pretrained(tmp_path)  # type: ignore[operator]
    held = load_file(tmp_path / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
        for name, t in held.items()
    }
    bare = {name.removeprefix("bert."): tensor for name, tensor in old.items() if name.startswith("bert.")}
    assert len(bare) > 30
    save_file(bare, tmp_path / "model.safetensors", metadata={"format": "pt"})
    require_same(tmp_path, HEAD)


def test_what_is_missing_or_of_another_shape_is_told_as_ever(tmp_path: Path):
    filled(OPT.make()).save_pretrained(tmp_path)  # type: ignore[operator]
    held = load_file(tmp_path / "model.safetensors")
    gone, other = "model.decoder.layers.0.fc1.weight", "model.decoder.layers.1.fc2.weight"
    changed = {name: tensor for name, tensor in held.items() if name != gone} | {other: held[other][:, :8].clone()}
    save_file(changed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    told = []
    for options in ({}, {"quantize": "nf4"}):
        with pytest.raises(ModelError, match=f"no tensor for {gone}") as error:
            load_base(tmp_path, **options)
        told.append(str(error.value))
    assert told[0] == told[1]
    assert f"{other} is (32, 8), the config says (32, 40)" in told[0]


def test_a_weight_is_read_when_the_one_before_it_is_quantised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    filled(OPT.make()).save_pretrained(tmp_path)  # type: ignore[operator]
    events: list[str] = []
    read, store = Entry.tensor, Quantisation.store

    def noted_read(entry: Entry) -> torch.Tensor:
        events.append(entry.name)
        return read(entry)

    def noted_store(form: Quantisation, W: torch.Tensor) -> Any:
        events.append("quantised")
        return store(form, W)

    monkeypatch.setattr(Entry, "tensor", noted_read)
    monkeypatch.setattr(Quantisation, "store", noted_store)
    model = load_base(tmp_path, quantize="nf4")
    linears = [name for name, module in model.named_modules() if type(module) is QuantisedLinear]
    assert len(linears) == 12
    assert all(events[events.index(f"{name}.weight") + 1] == "quantised" for name in linears)
