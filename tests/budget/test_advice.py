"""What is advised for which data, base and device: a table of facts, and that every rule has its reason and source."""

from typing import Any

import pytest

from lorica.budget.advice import Facts, decide, noted
from lorica.budget.rules import DISAGREEMENTS, DOUBTS, RULES

LLAMA_8B: dict[str, Any] = {
    "task": "causal_lm",
    "shape": "prompt_completion",
    "rows": 5_000,
    "dropped": 0,
    "tokens": 1_000_000,
    "learned": 500_000,
    "longest": 700,
    "model": "a base",
    "family": "llama",
    "instructed": False,
    "context": 8192,
    "parameters": 8_030_261_248,
    "width": 4096,
    "a_rank": 2_621_440,
    "quantised": False,
    "fits": True,
    "full_fits": False,
    "seconds_a_token": 1e-3,
    "hours": None,
}


def advised(**other: Any) -> tuple[str, dict[str, Any]]:
    """The method in words, and the settings."""
    decisions = decide(Facts(**{**LLAMA_8B, **other}), RULES)
    return decisions[0].words, {key: value for each in decisions for key, value in each.settings.items()}


METHODS = {
    "by default": ({}, "LoRA"),
    "memory is short": ({"fits": False}, "QLoRA"),
    "memory is short, and the base is in four bits": ({"fits": False, "quantised": True}, "LoRA"),
    "time is short: 3 passes take 50 minutes": ({"hours": 0.5}, "LoRA+"),
    "there is time": ({"hours": 1.0}, "LoRA"),
    "no rate is known": ({"hours": 0.5, "seconds_a_token": None}, "LoRA"),
    # 2 bits x 256 x 2,621,440 parameters: 1.34 billion tokens
    "data exceeds an adapter": ({"learned": 1_400_000_000, "full_fits": True}, "full fine-tuning"),
    "data exceeds an adapter, and the base does not fit": ({"learned": 1_400_000_000}, "LoRA"),
    "data does not exceed it": ({"learned": 1_300_000_000, "full_fits": True}, "LoRA"),
    "a prompt would do": ({"rows": 20, "tokens": 3_000, "instructed": True}, "none yet"),
    "a prompt would not hold it": ({"rows": 20, "tokens": 6_000, "instructed": True}, "LoRA"),
    "the base follows no instructions": ({"rows": 20, "tokens": 3_000}, "LoRA"),
}


@pytest.mark.parametrize("case", METHODS)
def test_the_method(case: str) -> None:
    facts, method = METHODS[case]
    assert advised(**facts)[0] == method


def test_rates_are_the_published_ones() -> None:
    """tinker-cookbook: 2.9e-4 at width 4096 on a Llama, 4.7e-4 on a Qwen; full fine-tuning a tenth of it; QLoRA's
    scripts 1e-4 from 33B on."""
    assert advised()[1]["train.learning_rate"] == pytest.approx(2.9e-4, rel=0.02)
    assert advised(family="qwen2")[1]["train.learning_rate"] == pytest.approx(4.7e-4, rel=0.02)
    assert advised(parameters=65e9, width=8192)[1]["train.learning_rate"] == 1e-4
    full = advised(learned=1_400_000_000, full_fits=True, rows=2_000_000)[1]
    assert full["train.learning_rate"] == pytest.approx(2.9e-5, rel=0.02)
    assert not {"method.r", "method.alpha", "method.dropout"} & full.keys()
    plus = advised(hours=0.1)[1]
    assert plus["train.lora_plus_ratio"] == 4.0
    assert plus["train.learning_rate"] == pytest.approx(1.4e-4, rel=0.04)
    assert advised(rows=200)[1]["train.learning_rate"] == pytest.approx(2.9e-4, rel=0.02), "125 steps"
    assert advised(rows=100)[1]["train.learning_rate"] == pytest.approx(4.3e-4, rel=0.02), (
        "63 steps: half as much again"
    )


def test_more_rows_take_a_higher_rank_and_fewer_passes_and_less_dropout() -> None:
    found = [advised(rows=rows)[1] for rows in (500, 5_000, 50_000, 500_000)]
    assert [each["method.r"] for each in found] == [8, 8, 16, 64]
    assert [each["train.epochs"] for each in found] == [5.0, 3.0, 2.0, 1.0]
    assert [each["method.dropout"] for each in found] == [0.1, 0.05, 0.0, 0.0]
    assert [each["train.rows_per_step"] for each in found] == [16, 32, 32, 32]


def test_more_tokens_than_a_rank_has_room_for_take_a_higher_one() -> None:
    room = 2 * LLAMA_8B["a_rank"]
    ranks = [advised(learned=r * room + 1)[1]["method.r"] for r in (15, 16, 63, 64)]
    assert ranks == [8, 64, 64, 256]


def test_few_rows_are_held_out_and_watched_and_the_fewest_are_not() -> None:
    assert advised(rows=500)[1]["train.patience"] == 2
    settings = advised(rows=12)[1]
    assert "data.eval" not in settings
    assert "train.patience" not in settings


def told(table: Any, **other: Any) -> str:
    facts = Facts(**{**LLAMA_8B, **other})
    return " ".join(words for words, _ in noted(facts, advised(**other)[1], table))


def test_it_says_when_lora_does_not_suit_and_where_sources_disagree() -> None:
    assert told(DOUBTS) == ""
    assert "continued pretraining" in told(DOUBTS, shape="text")
    assert "lag behind" in told(DOUBTS, learned=1_400_000_000)
    assert "a form, not a skill" in told(DOUBTS, rows=50)
    assert "one row in twenty is dropped" in told(DOUBTS, dropped=300)
    assert "alpha = 2 r" in told(DISAGREEMENTS)
    assert "63.8 %" in told(DISAGREEMENTS, rows=500)


def test_every_rule_has_its_reason_and_source_and_the_last_of_a_topic_that_must_be_settled_always_holds() -> None:
    for topic, rules in RULES.items():
        assert all(rule.reason and rule.source for rule in rules), topic
    settled = advised()[1]
    assert {"method.name", "method.r", "train.epochs", "train.learning_rate", "data.max_length"} <= settled.keys()
