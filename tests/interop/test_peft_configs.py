"""PEFT's configs become ours, and what has no counterpart is refused by name."""

import pytest
from peft import LoraConfig

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
        ({"init_lora_weights": "olora"}, "init_lora_weights"),
        ({"init_lora_weights": False}, "init_lora_weights"),
        ({"layers_to_transform": [1], "target_modules": ["q_proj"]}, "layers_to_transform"),
        ({"rank_pattern": {"^q.*": 2}}, r"rank_pattern: '\^q"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(fields, words):
    with pytest.raises(RecipeError, match=words):
        LoRA.from_peft(LoraConfig(**fields))
