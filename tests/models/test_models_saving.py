"""save_pretrained of our decoder: a folder that transformers reads, in shards where it is large."""

import json

import pytest
import torch
import transformers as hf

from lorica.errors import RunError
from lorica.models import load_base
from lorica.models.saving import save_base
from tiny_bases import LLAMA


@pytest.fixture
def model():
    return LLAMA.build(torch.float32)


def logits(model):
    with torch.no_grad():
        return LLAMA.output(model)


@pytest.mark.parametrize("shard", [1 << 40, 8000], ids=["one file", "shards"])
def test_what_is_saved_loads_here_and_in_transformers(model, shard, tmp_path):
    save_base(model, tmp_path / "out", shard=shard)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert (files == ["model.safetensors"]) == (shard > 8000)
    assert torch.equal(logits(load_base(tmp_path / "out")), logits(model))
    theirs, told = hf.LlamaForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    difference = logits(theirs.eval()) - logits(model)
    assert float(difference.abs().max() / logits(model).abs().max()) < 1e-5
    if shard == 8000:
        index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"].values()) == set(files)


def test_half_precision_is_saved_as_it_is_held(tmp_path):
    model = LLAMA.build(torch.bfloat16)
    model.save_pretrained(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert load_base(tmp_path / "out").dtype == torch.bfloat16


def test_a_folder_that_holds_something_is_left_alone(model, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty"):
        model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
