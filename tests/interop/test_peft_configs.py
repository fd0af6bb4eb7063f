"""PEFT's configs become ours, and what has no counterpart is refused by name."""

import pytest
from peft import LoraConfig

import lorica
from lorica.errors import RecipeError
from lorica.methods import LoRA


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
    method = LoRA.from_peft(LoraConfig())
    assert (method.r, method.alpha, method.target_modules) == (8, 8, "minimal")


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
    from tiny_bases import BERT

    config = LoraConfig(task_type=task, r=2, target_modules=["query"])
    plan = lorica.plan(BERT.build(), config).plan
    assert {site.name for site in plan.sites if site.kind == "parameter"} == {"classifier.weight", "classifier.bias"}
    with pytest.raises(RecipeError, match=r"give the config to lorica\.attach"):
        LoRA.from_peft(config)


def test_what_is_no_method_and_no_config_is_said_in_one_line():
    from tiny_bases import BERT

    with pytest.raises(lorica.TargetError, match="dict is none"):
        lorica.attach(BERT.build(), {"r": 8})
