"""Adapters whose modules are more than one low-rank product do all that a LoRA does: refused untrained, inspected, held
in a bank, merged shard by shard.  On GPT-2, whose layers are transposed and have biases."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lorica import adapter
from lorica.errors import AdapterError
from lorica.methods import IA3, HiRA, LoHa, LoKr, Method, MultiLoRA, VeRA
from lorica.models import load_base
from tiny_bases import GPT2, stir

METHODS = (
    HiRA(r=2),
    IA3(),
    LoHa(r=2, alpha=40, target_modules="attention"),
    LoKr(r=2, alpha=10),
    MultiLoRA(n=2, r=2),
    VeRA(r=6),
    VeRA(r=6, save_projection=False),
)
IN_PEFT = {"hira", "ia3", "vera"}
"""PEFT has LoHa and LoKr, but not on transformers' Conv1D, and no MultiLoRA."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("bases") / "gpt2"
    GPT2.build(torch.float32).save_pretrained(where)  # type: ignore[operator]
    return where


def near(found: Tensor, expected: Tensor) -> None:
    """A forward pass in float32 of some twenty matrices with sums of 128 at most."""
    eps = torch.finfo(torch.float32).eps
    bound = 20 * 128**0.5 * eps * float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=bound)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.kind)
def test_an_adapter_is_refused_untrained_inspected_banked_and_merged(method: Method, folder: Path, tmp_path: Path):
    attached = adapter.attach(load_base(folder), method)
    attached.save(tmp_path / "untrained")
    with pytest.raises(AdapterError, match="changes nothing"):
        adapter.load(load_base(folder), tmp_path / "untrained")
    stir(attached.named_parameters())
    attached.save(tmp_path / "adapter")
    with torch.no_grad():
        expected = GPT2.output(attached.model)

    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert ("peft_type" in config) is (method.kind in IN_PEFT)
    inspection = adapter.inspect(tmp_path / "adapter")
    assert inspection.trained_parameters == attached.trainable_parameters
    assert len(inspection.sites) == len(attached.plan.edits)

    model = load_base(folder)
    bank = adapter.Bank(model)
    bank.add("it", tmp_path / "adapter")
    with torch.no_grad():
        bare = GPT2.output(model)
        with bank.use(["it", None, "it"]):
            mixed = GPT2.output(model)
    near(mixed[[0, 2]], expected[[0, 2]])
    assert torch.equal(mixed[1], bare[1])

    adapter.merge_checkpoint(folder, tmp_path / "adapter", tmp_path / "merged")
    with torch.no_grad():
        merged = GPT2.output(load_base(tmp_path / "merged"))
    near(merged, expected)
