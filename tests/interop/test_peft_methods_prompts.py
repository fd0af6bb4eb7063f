"""Prefixes, prompts, P-tuning and norms travel between PEFT and Lorica by their outputs, with noise in every tensor."""

import json
import warnings
from typing import Any

import peft
import pytest
import torch
import transformers as hf
from peft_bases import BASES, ENCODER, VOCABULARY, Base, add_noise, distance, only_their_own_warnings, rounding
from safetensors.torch import load_file, save_file

from lorica import adapter
from lorica.errors import AdapterError, RecipeError
from lorica.methods import LoRA, Norm, Prefix, Prompt, PTuning, PTuningV2, method_of_peft
from lorica.models import load_base

P = 4
TENSORS = "adapter_model.safetensors"
LLAMA, GPT2, BERT, T5, MISTRAL = (
    next(base for base in BASES if base.name == name) for name in ("llama", "gpt2", "bert", "t5", "mistral")
)
TOKENS = Base(
    "bert",
    lambda: hf.BertForTokenClassification(
        hf.BertConfig(**ENCODER, vocab_size=VOCABULARY, max_position_embeddings=64, num_labels=3)
    ),
    {"task_type": "TOKEN_CLS"},
)
LSTM = {"encoder_reparameterization_type": "LSTM", "encoder_num_layers": 2}
CONFIGS: list[tuple[str, Base, Any, Any]] = [
    ("prefix", LLAMA, peft.PrefixTuningConfig, {}),
    ("prefix with its MLP", GPT2, peft.PrefixTuningConfig, {"prefix_projection": True, "encoder_hidden_size": 5}),
    ("prefix", BERT, peft.PrefixTuningConfig, {}),
    ("prompt", LLAMA, peft.PromptTuningConfig, {}),
    ("prompt", GPT2, peft.PromptTuningConfig, {}),
    ("prompt", T5, peft.PromptTuningConfig, {}),
    ("prompt", TOKENS, peft.PromptTuningConfig, {}),
    ("p-tuning mlp", LLAMA, peft.PromptEncoderConfig, {"encoder_hidden_size": 5}),
    ("p-tuning lstm", LLAMA, peft.PromptEncoderConfig, {"encoder_hidden_size": 5, **LSTM}),
    ("p-tuning lstm", T5, peft.PromptEncoderConfig, {"encoder_hidden_size": 5, **LSTM}),
    ("norm", LLAMA, peft.LNTuningConfig, {}),
    ("norm", BERT, peft.LNTuningConfig, {"target_modules": ["attention.output.LayerNorm"]}),
]
COUNTED = [case for case in CONFIGS if case[1] is not T5]
"""For an encoder-decoder PEFT trains twice as many vectors, half of which nothing reads."""
METHODS: list[tuple[Any, Base]] = [
    (Prefix(length=P, hidden=6), LLAMA),
    (PTuningV2(length=P), GPT2),
    (PTuningV2(length=P, modules_to_save=("classifier",)), BERT),
    (Prompt(length=P), LLAMA),
    (Prompt(length=P), GPT2),
    (Prompt(length=P), T5),
    (Prompt(length=P, modules_to_save=("classifier",)), TOKENS),
    (PTuning(length=P, hidden=5), LLAMA),
    (PTuning(length=P, hidden=5, encoder="lstm"), T5),
    (Norm(), LLAMA),
    (Norm(target_modules=("attention.output.LayerNorm",), modules_to_save=("classifier",)), BERT),
]


def ids(cases: list[Any]) -> list[str]:
    return ["-".join(str(getattr(part, "kind", getattr(part, "name", part))) for part in case[:2]) for case in cases]


def theirs(folder):
    kind = getattr(hf, json.loads((folder / "config.json").read_text())["architectures"][0])
    with only_their_own_warnings():
        return kind.from_pretrained(folder).eval()


def with_peft(base, folder, kind, fields):
    """PEFT's adapter on the transformers model, noise in every trained tensor."""
    tokens = {} if kind is peft.LNTuningConfig else {"num_virtual_tokens": P}
    given = {"task_type": base.adapter["task_type"], **tokens, **fields}
    with only_their_own_warnings():
        warnings.filterwarnings("ignore", message="Unsupported layer type")  # any norm, says PEFT of its own method
        model = peft.get_peft_model(theirs(folder), kind(**given)).eval()
    add_noise([p for p in model.parameters() if p.requires_grad])
    return model


def answered(model, inputs):
    """Logits of the real tokens: PEFT gives those of soft tokens back as well."""
    with only_their_own_warnings(), torch.no_grad():
        logits = model(**inputs).logits
    length = inputs["input_ids"].shape[1]
    return logits[:, P:] if logits.dim() == 3 and logits.shape[1] == length + P else logits


def saved(model, folder):
    with only_their_own_warnings():
        warnings.filterwarnings("ignore", message="Could not find a config file")
        model.save_pretrained(folder)


@pytest.mark.parametrize(("name", "base", "kind", "fields"), CONFIGS, ids=ids(CONFIGS))
def test_what_peft_saves_computes_the_same_here_and_returns_to_the_bit(name, base, kind, fields, tmp_path):
    folder, inputs = base.saved(tmp_path / "base"), base.inputs()
    before = answered(theirs(folder), inputs)
    model = with_peft(base, folder, kind, fields)
    expected = answered(model, inputs)
    assert distance(expected, before) > 0.1
    saved(model, tmp_path / "theirs")
    ours = load_base(folder)
    untouched = answered(ours, inputs)
    attached = adapter.load(ours, tmp_path / "theirs")
    assert distance(answered(attached, inputs), expected) < rounding(ours)
    assert adapter.inspect(tmp_path / "theirs").trained_parameters == attached.trainable_parameters
    attached.save(tmp_path / "ours")
    there, back = load_file(tmp_path / "theirs" / TENSORS), load_file(tmp_path / "ours" / TENSORS)
    assert there.keys() == back.keys()
    assert all(torch.equal(there[key][: len(back[key])], back[key]) for key in back)
    assert torch.equal(answered(attached.detach(), inputs), untouched)


@pytest.mark.parametrize(("method", "base"), METHODS, ids=ids(METHODS))
def test_what_is_saved_here_computes_the_same_in_peft(method, base, tmp_path):
    folder, inputs = base.saved(tmp_path / "base"), base.inputs()
    ours = load_base(folder)
    attached = adapter.attach(ours, method)
    add_noise(attached.parameters())
    expected = answered(attached, inputs)
    attached.save(tmp_path / "adapter")
    with only_their_own_warnings():
        warnings.filterwarnings("ignore", message="Unsupported layer type")
        model = peft.PeftModel.from_pretrained(theirs(folder), tmp_path / "adapter").eval()
        assert distance(answered(model, inputs), expected) < rounding(ours)
        held = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    stored = load_file(tmp_path / "adapter" / TENSORS)
    assert held.keys() == stored.keys()
    assert all(torch.equal(held[key], stored[key]) for key in stored)


@pytest.mark.parametrize(("name", "base", "kind", "fields"), COUNTED, ids=ids(COUNTED))
def test_a_config_of_peft_describes_the_same_count(name, base, kind, fields, tmp_path):
    folder = base.saved(tmp_path / "base")
    model = with_peft(base, folder, kind, fields)
    plan = adapter.plan(load_base(folder), model.peft_config["default"])
    assert plan.trainable_parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_peft_reads_a_prefix_in_the_cache_when_it_generates(tmp_path):
    """Greedy tokens of both, with their caches."""
    folder = LLAMA.saved(tmp_path / "base")
    model = with_peft(LLAMA, folder, peft.PrefixTuningConfig, {})
    saved(model, tmp_path / "theirs")
    attached = adapter.load(load_base(folder), tmp_path / "theirs")
    given = {"input_ids": LLAMA.inputs()["input_ids"][:2, :6]}
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with only_their_own_warnings():
        warnings.filterwarnings("ignore", message="Position ids are not supported")
        expected = model.generate(**given, attention_mask=torch.ones_like(given["input_ids"]), **options)
    assert torch.equal(attached.generate(**given, max_new_tokens=8, eos_token_id=[]), expected)


def test_a_prefix_and_p_tuning_v2_share_a_file_and_a_config():
    for projection in (True, False):
        config = peft.PrefixTuningConfig(num_virtual_tokens=7, prefix_projection=projection, encoder_hidden_size=9)
        assert method_of_peft(config) is Prefix
        assert Prefix.from_peft(config) == Prefix(length=7, hidden=9, projection=projection)


def test_a_prefix_in_an_encoder_decoder_is_refused_because_peft_doubles_its_layers(tmp_path):
    """PEFT lays the prefixes of L layers out twice and cuts the row into fours, so layer l gets that of 2 l mod L:
    with two layers both get the first's, and the second's keys and values are read by nothing."""
    folder, inputs = T5.saved(tmp_path / "base"), T5.inputs()
    model = with_peft(T5, folder, peft.PrefixTuningConfig, {})
    before = answered(model, inputs)
    with torch.no_grad():
        second_layer = model.prompt_encoder["default"].embedding.weight[:, 64:]
        second_layer.add_(1.0)
    assert torch.equal(answered(model, inputs), before)
    saved(model, tmp_path / "theirs")
    with pytest.raises(AdapterError, match="num_transformer_submodules: with 2, PEFT gives layer l"):
        adapter.load(load_base(folder), tmp_path / "theirs")
    with pytest.raises(RecipeError, match="task_type: in an encoder-decoder"):
        Prefix.from_peft(model.peft_config["default"])
    ours = adapter.attach(load_base(folder), PTuningV2(length=P))
    ours.save(tmp_path / "ours")
    assert "peft_type" not in json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    adapter.load(load_base(folder), tmp_path / "ours")


def test_a_prefix_is_not_exchanged_with_peft_on_a_base_with_a_window(tmp_path):
    """PEFT's prefix lies in the cache, so a window of 6 leaves it behind; prefix tuning has every token see it."""
    folder, inputs = MISTRAL.saved(tmp_path / "base"), MISTRAL.inputs()
    model = with_peft(MISTRAL, folder, peft.PrefixTuningConfig, {})
    expected = answered(model, inputs)
    keys_values = model.prompt_encoder["default"].embedding.weight.detach().unflatten(1, (2, 2, 2, -1))
    saved(model, tmp_path / "theirs")
    with pytest.raises(AdapterError, match="peft_type: this base looks 6 tokens back, and in PEFT that window leaves"):
        adapter.load(load_base(folder), tmp_path / "theirs")
    attached = adapter.attach(load_base(folder), PTuningV2(length=P))
    with torch.no_grad():
        for layer, planned in enumerate(attached.plan.edits):
            module = attached.modules[planned.key]
            module.keys.copy_(keys_values[:, layer, 0])
            module.values.copy_(keys_values[:, layer, 1])
    found, within = answered(attached, inputs), 6 - P
    assert distance(found[:, :within], expected[:, :within]) < rounding(attached.model)
    assert distance(found[:, within:], expected[:, within:]) > 0.01
    attached.save(tmp_path / "ours")
    assert "peft_type" not in json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    again = adapter.load(load_base(folder), tmp_path / "ours")
    assert torch.equal(answered(again, inputs), found)


def test_a_prompt_before_a_classifier_is_refused_because_peft_classifies_by_a_soft_token(tmp_path):
    """BERT's pooler reads the first place of the row: the classifier of PEFT's model then never reads [CLS]."""
    folder, inputs = BERT.saved(tmp_path / "base"), BERT.inputs()
    model = with_peft(BERT, folder, peft.PromptTuningConfig, {})
    soft = model.prompt_encoder["default"].embedding.weight
    rows = soft.expand(len(inputs["input_ids"]), -1, -1)
    with torch.no_grad():
        bert = model.base_model.bert
        embedded = torch.cat([rows, bert.embeddings.word_embeddings(inputs["input_ids"])], 1)
        first = bert.encoder(bert.embeddings(inputs_embeds=embedded)).last_hidden_state[:, :1]
        assert distance(answered(model, inputs), model.base_model.classifier(bert.pooler(first))) < 1e-6
    saved(model, tmp_path / "theirs")
    with pytest.raises(AdapterError, match="task_type: in SEQ_CLS PEFT's head reads soft tokens"):
        adapter.load(load_base(folder), tmp_path / "theirs")
    adapter.attach(load_base(folder), Prompt(length=P, modules_to_save=("classifier",))).save(tmp_path / "ours")
    assert "peft_type" not in json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    adapter.load(load_base(folder), tmp_path / "ours")


def test_a_file_of_virtual_tokens_that_does_not_fit_the_base_is_told_by_its_numbers(tmp_path):
    folder = LLAMA.saved(tmp_path / "base")
    saved(with_peft(LLAMA, folder, peft.PrefixTuningConfig, {}), tmp_path / "a")
    config, path = tmp_path / "a" / "adapter_config.json", tmp_path / "a" / TENSORS
    told = json.loads(config.read_text())
    for change, match in [
        ({"num_layers": 3}, "num_layers: 3 in the file, and this base has 2 attentions"),
        ({"num_virtual_tokens": 5}, r"prompt_embeddings: \(4, 64\) in the file, \(5, 64\)"),
        ({"num_virtual_tokens": "many"}, "num_virtual_tokens: expected a positive number, found 'many'"),
        ({"num_layers": 10**12}, "num_layers: expected a positive number, found 1000000000000"),
        ({"init_weights": "zero", "prefix_scale": 2}, "prefix_scale: 2 has no counterpart here"),
    ]:
        config.write_text(json.dumps({**told, **change}))
        with pytest.raises(AdapterError, match=match):
            adapter.load(load_base(folder), tmp_path / "a")
        if "prompt_embeddings" not in match and change != {"num_layers": 3}:
            with pytest.raises(AdapterError, match=match):
                adapter.inspect(tmp_path / "a")
    config.write_text(json.dumps(told))
    save_file({"other": load_file(path)["prompt_embeddings"]}, path)
    with pytest.raises(AdapterError, match="prompt_embeddings: missing from the file"):
        adapter.load(load_base(folder), tmp_path / "a")


def test_several_methods_write_no_config_of_peft(tmp_path):
    folder = LLAMA.saved(tmp_path / "base")
    adapter.attach(load_base(folder), [LoRA(r=2), Prefix(length=P, hidden=6)]).save(tmp_path / "a")
    told = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert "peft_type" not in told
    assert [entry["name"] for entry in told["methods"]] == ["lora", "prefix"]
