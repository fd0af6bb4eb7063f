"""Merged checkpoints load in transformers and compute what base and adapter computed together."""

import json

import pytest
import torch
import transformers as hf
from safetensors import safe_open

from adapter_folders import forged
from lorica import adapter
from lorica.errors import AdapterError, RunError
from lorica.methods import Bottleneck, Full, LoRA, Prefix, Prompt, PTuning, PTuningV2
from lorica.models import load_base
from tiny_bases import filled, stir

LLAMA = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
IDS = torch.arange(3, 33).view(3, 10)
MODELS = {
    "llama": (hf.LlamaForCausalLM, hf.LlamaConfig(**LLAMA, tie_word_embeddings=False)),
    "tied": (hf.LlamaForCausalLM, hf.LlamaConfig(**LLAMA, tie_word_embeddings=True)),
    "gpt2": (hf.GPT2LMHeadModel, hf.GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
}
BOUND = 1e-5
"""float32: the rounding of about 15 chained sums of 61 terms, relative to the largest logit."""


def base_folder(name, folder, **options):
    kind, config = MODELS[name]
    filled(kind(config)).save_pretrained(folder, **options)
    return folder


def trained(base, folder, method):
    attached = adapter.attach(load_base(base), method)
    stir(attached.named_parameters(), 0.2)
    attached.save(folder)
    with torch.no_grad():
        return attached(input_ids=IDS).logits


def distance(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("llama", LoRA(r=3, alpha=7, rslora=True)),
        ("llama", Full()),
        ("tied", LoRA(r=3, target_modules=["embed_tokens", "q_proj"])),
        ("tied", LoRA(r=3, target_modules=["lm_head"])),
        ("gpt2", LoRA(r=3, target_modules=["c_attn", "wte"], bias="all")),
    ],
    ids=["llama-lora", "llama-full", "tied-embedding", "tied-head", "gpt2"],
)
def test_a_merged_checkpoint_computes_what_the_adapted_model_did(name, method, tmp_path):
    base = base_folder(name, tmp_path / "base")
    expected = trained(base, tmp_path / "adapter", method)
    told = adapter.merge_checkpoint(base, tmp_path / "adapter", tmp_path / "out")
    model, loading = MODELS[name][0].from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    with torch.no_grad():
        assert distance(model.eval()(input_ids=IDS).logits, expected) < BOUND
        assert distance(load_base(tmp_path / "out")(input_ids=IDS).logits, expected) < BOUND
    assert told.largest_change > 0
    assert told.weights == len(adapter.read(tmp_path / "adapter").methods[0].edits(_sites(base)))
    assert str(tmp_path / "out") in str(told)


def _sites(base):
    from lorica.models import shapes_only, sites

    return sites(shapes_only(base))


def test_shards_keep_their_names_and_type_and_only_adapted_weights_change(tmp_path):
    kind, config = MODELS["llama"]
    filled(kind(config)).bfloat16().save_pretrained(tmp_path / "base", max_shard_size="12KB")
    shards = sorted(p.name for p in (tmp_path / "base").glob("*.safetensors"))
    assert len(shards) > 2
    expected = trained(tmp_path / "base", tmp_path / "adapter", LoRA(r=3, target_modules=["up_proj"]))
    told = adapter.merge_checkpoint(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").glob("*.safetensors")) == shards
    changed = [name for shard in shards for name in _differing(tmp_path / "base" / shard, tmp_path / "out" / shard)]
    assert changed == [f"model.layers.{layer}.mlp.up_proj.weight" for layer in (0, 1)]
    assert told.weights == 2
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == shards
    with torch.no_grad():  # bfloat16 rounds the merged weight: 2**-9 of it, through a few layers
        assert distance(load_base(tmp_path / "out")(input_ids=IDS).logits.float(), expected.float()) < 0.05


@pytest.mark.parametrize("name", ["llama", "tied"])
@pytest.mark.parametrize("end", ["base_layer.weight", "weight"], ids=["beside", "whole"])
def test_a_matrix_of_another_base_is_refused_without_a_probe_too(name, end, tmp_path):
    """PEFT writes the embedding beside an adapter on it, and whole where the vocabulary was resized."""
    base = base_folder(name, tmp_path / "base")
    trained(base, tmp_path / "adapter", LoRA(r=3, target_modules=["embed_tokens" if "base" in end else "q_proj"]))
    own = load_base(base).get_parameter("model.embed_tokens.weight").detach()
    for change in (0, 1):
        brought = {f"base_model.model.model.embed_tokens.{end}": own + change}
        forged(tmp_path / "adapter", lambda tensors, _, brought=brought: tensors.update(brought))
        out = tmp_path / f"out{change}"
        if change:
            with pytest.raises(AdapterError, match=r"which is not this base|nothing in adapter_config\.json asks"):
                adapter.merge_checkpoint(base, tmp_path / "adapter", out, unprobed="too large")
            assert not out.exists()
        else:
            adapter.merge_checkpoint(base, tmp_path / "adapter", out, unprobed="too large")


def _differing(before, after):
    with safe_open(before, "pt") as one, safe_open(after, "pt") as two:
        assert set(one.keys()) == set(two.keys())
        for name in sorted(one.keys()):
            first, second = one.get_tensor(name), two.get_tensor(name)
            assert first.dtype == second.dtype
            if not torch.equal(first, second):
                yield name


@pytest.mark.parametrize("method", [Prefix(), PTuningV2(), Prompt(), PTuning(), Bottleneck()], ids=lambda m: m.kind)
def test_what_is_no_weight_is_said_to_be_none(method, tmp_path):
    base = base_folder("llama", tmp_path / "base")
    trained(base, tmp_path / "adapter", method)
    with pytest.raises(AdapterError, match=f"^(prefix|{method.kind}) cannot be merged: what it adds is no weight"):
        adapter.merge_checkpoint(base, tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_where_something_is_or_where_the_adapter_does_not_fit(tmp_path):
    base = base_folder("llama", tmp_path / "base")
    trained(base, tmp_path / "adapter", LoRA(r=3))
    with pytest.raises(RunError, match="not empty"):
        adapter.merge_checkpoint(base, tmp_path / "adapter", tmp_path / "base")
    other = base_folder("gpt2", tmp_path / "gpt2")
    with pytest.raises(AdapterError, match="another base"):
        adapter.merge_checkpoint(other, tmp_path / "adapter", tmp_path / "out")
    with pytest.raises(AdapterError, match="no such site"):
        adapter.merge_checkpoint(other, tmp_path / "adapter", tmp_path / "out", other_base=True)
    assert not (tmp_path / "out").exists()


def test_a_merge_in_float32_keeps_what_the_type_of_the_base_rounds_away(tmp_path):
    """A tenth of bfloat16's last place moves no weight of it, and all of one sign adds up where inputs have one too."""
    folder = tmp_path / "base"
    kind, config = MODELS["llama"]
    base = filled(kind(config))
    with torch.no_grad():
        base.get_input_embeddings().weight.abs_()
    base.to(torch.bfloat16).save_pretrained(folder)
    attached = adapter.attach(load_base(folder), LoRA(r=3, alpha=3))
    with torch.no_grad():
        for _, parameter in attached.named_parameters():
            parameter.fill_((1e-4 / 3) ** 0.5)
    attached.save(tmp_path / "adapter")
    with pytest.raises(AdapterError, match=r"of the adapter's effect.*lorica merge --dtype float32"):
        adapter.merge_checkpoint(folder, tmp_path / "adapter", tmp_path / "rounded")
    assert not (tmp_path / "rounded").exists()
    told = adapter.merge_checkpoint(folder, tmp_path / "adapter", tmp_path / "out", dtype="float32")
    assert told.outputs is not None
    assert told.outputs.share > 0.99
    merged = MODELS["llama"][0].from_pretrained(tmp_path / "out")
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}
    wide = adapter.load(load_base(folder, dtype="float32"), tmp_path / "adapter")
    with torch.no_grad():
        assert distance(merged(input_ids=IDS).logits, wide(input_ids=IDS).logits) < BOUND
