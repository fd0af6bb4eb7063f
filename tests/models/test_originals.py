"""Where the weights of a quantised base as they were before are found, and what is said where they are not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTModel

import lorica
from lorica.errors import ModelError, TargetError
from lorica.models import original_weight, sites, weight_of

SHAPE: dict[str, Any] = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
LOFTQ = lorica.LoRA(r=2, alpha=7, init="loftq")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A Llama in two shards, one in four bits, another Llama, and the bare model of an OPT."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("bases")
    models: dict[str, Any] = {
        "llama": LlamaForCausalLM(LlamaConfig(intermediate_size=96, tie_word_embeddings=False, **SHAPE)).bfloat16(),
        "other": LlamaForCausalLM(LlamaConfig(intermediate_size=96, tie_word_embeddings=False, **SHAPE)).bfloat16(),
        "opt": OPTModel(OPTConfig(ffn_dim=96, word_embed_proj_dim=64, **SHAPE)),
    }
    for name, model in models.items():
        model.save_pretrained(place / name, max_shard_size="60KB")
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    stored = AutoModelForCausalLM.from_pretrained(place / "llama", quantization_config=four, dtype=torch.bfloat16)
    stored.save_pretrained(place / "four")
    return {name: place / name for name in (*models, "four")}


def test_the_checkpoint_that_was_quantised_as_it_was_loaded_is_read_again(folders: dict[str, Path]):
    assert len(list(folders["llama"].glob("*.safetensors"))) > 1
    for name in ("llama", "opt"):
        dense: Any = lorica.load_base(folders[name])
        model: Any = lorica.load_base(folders[name], quantize="nf4")
        stored = [site for site in sites(model) if site.kind == "linear" and site.stored]
        assert len(stored) >= 6
        for site in stored:
            W = original_weight(model, site, model.source, None)
            assert torch.equal(W, dense.get_submodule(site.name).weight)
            assert not torch.equal(W, weight_of(model, site).dense())


def test_a_checkpoint_stored_in_four_bits_is_repaired_from_the_one_that_is_named(folders: dict[str, Path]):
    model, here = lorica.load_base(folders["four"]), lorica.load_base(folders["llama"], quantize="nf4")
    with pytest.raises(ModelError, match=r"q_proj.weight is stored quantised itself; name the checkpoint"):
        lorica.attach(model, LOFTQ)
    named = lorica.LoRA(r=2, alpha=7, init={"name": "loftq", "original": str(folders["llama"])})
    found, expected = lorica.attach(model, named).state(), lorica.attach(here, LOFTQ).state()
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in found.items())


def test_a_model_that_the_user_quantised_says_where_it_comes_from(folders: dict[str, Path]):
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(folders["llama"], quantization_config=four, dtype=torch.bfloat16)
    found = lorica.attach(model, LOFTQ).state()
    expected = lorica.attach(lorica.load_base(folders["llama"], quantize="nf4"), LOFTQ).state()
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in found.items())


def test_an_original_that_does_not_fit_is_named_and_nothing_is_attached(folders: dict[str, Path]):
    model: Any = lorica.load_base(folders["llama"], quantize="nf4")
    for original, told in (
        ("other", "it is another model's"),
        ("opt", "no tensor for model.layers.0.self_attn.q_proj"),
    ):
        with pytest.raises((TargetError, ModelError), match=told):
            lorica.attach(model, lorica.LoRA(init={"name": "loftq", "original": str(folders[original])}))
    model.source = None
    with pytest.raises(ModelError, match="nothing says where this model was loaded from; name the checkpoint"):
        lorica.attach(model, LOFTQ)
    with pytest.raises(TargetError, match=r"q_proj and 6 more: not quantised, so there is nothing to put back"):
        lorica.attach(lorica.load_base(folders["llama"]), LOFTQ)
    lorica.attach(model, lorica.LoRA()).detach()
