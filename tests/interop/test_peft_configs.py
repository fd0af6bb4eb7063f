"""PEFT's configs become ours, and what has no counterpart is refused by name."""

from copy import copy
from itertools import product

import pytest
import transformers as hf
from peft import AdaLoraConfig, IA3Config, LoraConfig, get_peft_model

import lorica
from lorica.errors import RecipeError
from lorica.methods import LoRA
from tiny_bases import BERT, GPT2, LLAMA, T5


def test_a_config_of_peft_keeps_its_meaning():
    config = LoraConfig(
        r=5,
        lora_alpha=11,
        lora_dropout=0.1,
        target_modules=["v_proj", "q_proj"],
        bias="all",
        use_rslora=True,
        init_lora_weights="gaussian",
        rank_pattern={"q_proj": 2},
        alpha_pattern={"v_proj": 3},
        modules_to_save=["score"],
    )
    expected = LoRA(
        r=5,
        alpha=11,
        dropout=0.1,
        target_modules=("q_proj", "v_proj"),
        bias="all",
        rslora=True,
        init="gaussian",
        rank_pattern={"q_proj": 2},
        alpha_pattern={"v_proj": 3},
        modules_to_save=("score",),
    )
    assert LoRA.from_peft(config) == expected
    assert LoRA.from_peft(config.to_dict()) == expected


def test_pefts_defaults_are_pefts():
    method = LoRA.from_peft(LoraConfig(target_modules=["q_proj"]))
    assert (method.r, method.alpha) == (8, 8)


def _phi():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    return hf.PhiForCausalLM(hf.PhiConfig(vocab_size=61, **sizes))


def _opt():
    sizes = {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    return hf.OPTForCausalLM(hf.OPTConfig(vocab_size=61, word_embed_proj_dim=32, **sizes))


CONFIGS = [LoraConfig(r=2), AdaLoraConfig(total_step=9), IA3Config()]
FAMILIES = [LLAMA.build, BERT.build, GPT2.build, T5.build, _opt]
WITHOUT_TARGETS = [*product(FAMILIES, CONFIGS), (_phi, CONFIGS[0])]


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
@pytest.mark.parametrize(("make", "config"), WITHOUT_TARGETS)
def test_without_targets_a_config_adapts_what_peft_chooses_for_the_family(make, config):
    peers = get_peft_model(make(), copy(config))
    named = {name.removeprefix("base_model.model."): module for name, module in peers.named_modules()}
    plan = lorica.plan(make(), config).plan
    around = [edit for edit in plan.edits if edit.edit.place == "around"]
    assert {edit.site.name for edit in around} == {name for name, m in named.items() if hasattr(m, "base_layer")}
    if isinstance(config, IA3Config):
        read = {edit.site.name for edit in around if edit.method.reads(edit.site)}
        assert read == {name for name, module in named.items() if getattr(module, "is_feedforward", False)}


def test_without_targets_a_family_that_pefts_table_lacks_is_refused_as_peft_does():
    with pytest.raises(ValueError, match="Please specify `target_modules`"):
        get_peft_model(_phi(), copy(CONFIGS[1]))
    with pytest.raises(RecipeError, match="target_modules: left out"):
        lorica.plan(_phi(), CONFIGS[1])


def test_without_targets_and_without_a_model_a_config_says_nothing():
    with pytest.raises(RecipeError, match=r"target_modules: left out, where PEFT chooses.*name them"):
        LoRA.from_peft(LoraConfig())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"target_modules": ".*q_proj"}, "regular expression"),
        ({"init_lora_weights": "orthogonal"}, "init_lora_weights"),
        ({"init_lora_weights": False}, "init_lora_weights"),
        ({"layers_to_transform": [1], "target_modules": ["q_proj"]}, "layers_to_transform"),
        ({"rank_pattern": {"^q.*": 2}}, r"rank_pattern: '\^q"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(fields, words):
    with pytest.raises(RecipeError, match=words):
        LoRA.from_peft(LoraConfig(**fields))


@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS"])
def test_a_classifier_config_trains_the_head_that_peft_adds(task):
    config = LoraConfig(task_type=task, r=2, target_modules=["query"])
    plan = lorica.plan(BERT.build(), config).plan
    assert {site.name for site in plan.sites if site.kind == "parameter"} == {"classifier.weight", "classifier.bias"}
    with pytest.raises(RecipeError, match=r"give the config to lorica\.attach"):
        LoRA.from_peft(config)


def test_what_is_no_method_and_no_config_is_said_in_one_line():
    with pytest.raises(lorica.TargetError, match="dict is none"):
        lorica.attach(BERT.build(), {"r": 8})
