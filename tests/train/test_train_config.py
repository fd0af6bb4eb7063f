"""What a recipe may say under `train:`, and what is refused."""

import pytest
from pydantic import ValidationError

from lorica.train import TrainConfig


def test_three_epochs_of_32_rows_are_the_default():
    config = TrainConfig()
    assert (config.epochs, config.steps) == (3, None)
    assert (config.rows_per_step, config.tokens_per_step) == (32, None)


def test_what_is_given_takes_the_place_of_a_default():
    config = TrainConfig(steps=7, tokens_per_step=4096)
    assert (config.epochs, config.steps) == (None, 7)
    assert (config.rows_per_step, config.tokens_per_step) == (None, 4096)


def test_numbers_that_yaml_reads_as_text_are_numbers():
    config = TrainConfig.model_validate(
        {"learning_rate": "2e-4", "steps": "1e3", "warmup": "3e-2", "clip": "1e0", "evaluate_every": "50"}
    )
    assert (config.learning_rate, config.steps, config.warmup, config.clip) == (2e-4, 1000, 0.03, 1.0)
    assert config.evaluate_every == 50


def test_an_optimizer_may_be_its_name_or_a_mapping():
    assert TrainConfig.model_validate({"optimizer": "adamw"}) == TrainConfig()
    config = TrainConfig.model_validate({"optimizer": {"betas": [0.9, 0.95], "weight_decay": "1e-2"}})
    assert (config.optimizer.betas, config.optimizer.weight_decay) == ((0.9, 0.95), 0.01)


def test_the_learning_rate_follows_the_optimizer_where_none_is_given():
    usual = {name: TrainConfig(optimizer=name).learning_rate for name in ("adamw", "adafactor", "lion", "muon")}
    assert usual == {"adamw": 2e-4, "adafactor": 2e-4, "lion": 4e-5, "muon": 2e-4}
    assert TrainConfig(optimizer={"name": "adafactor", "relative_step": True}).learning_rate == 1e-2
    assert TrainConfig(optimizer={"name": "lion"}, learning_rate=1e-3).learning_rate == 1e-3


def test_gradient_checkpointing_is_all_some_none_or_as_memory_demands():
    given = [
        TrainConfig.model_validate({"gradient_checkpointing": value}).gradient_checkpointing
        for value in (True, False, 1, 4, "auto")
    ]
    assert [(value, type(value)) for value in given] == [(True, bool), (False, bool), (1, int), (4, int), ("auto", str)]


def test_a_config_survives_its_own_dump():
    config = TrainConfig(steps=3, optimizer={"weight_decay": 0.1}, patience=2)
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config
    assert TrainConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"epochs": 1, "steps": 5}, "epochs and steps are two answers"),
        ({"rows_per_step": 1, "tokens_per_step": 5}, "rows_per_step and tokens_per_step are two answers"),
        ({"learning_rate": "fast"}, "'fast' is not a number"),
        ({"learning_rate": "nan"}, "learning_rate"),
        ({"learning_rate": 0}, "greater than 0"),
        ({"steps": True}, "not true or false"),
        ({"evaluate_every": True}, "not true or false"),
        ({"checkpoint_every": True}, "not true or false"),
        ({"steps": 2.5}, "steps"),
        ({"warmup": 1.5}, "neither a share below 1 nor a whole number"),
        ({"min_lr_ratio": 1.1}, "less than or equal to 1"),
        ({"schedule": "cosinus"}, "schedule"),
        ({"evaluate_every": 0}, "evaluate_every"),
        ({"evaluate_every": "day"}, "evaluate_every"),
        ({"batch_size": 8}, "batch_size"),
        ({"optimizer": "sgdd"}, "optimizer"),
        ({"optimizer": "sgd"}, "learning_rate is missing, and sgd has no usual one"),
        ({"optimizer": {"name": "sgd", "betas": [0.9, 0.99]}, "learning_rate": 0.1}, "sgd.betas"),
        ({"optimizer": {"name": "lion", "eps": 1e-8}}, "lion.eps"),
        ({"optimizer": {"name": "sgd", "momentum": 0, "nesterov": True}, "learning_rate": 1}, "give momentum"),
        ({"lora_plus_ratio": 0.5}, "lora_plus_ratio"),
        ({"lr_embedding": 1e-5}, "give lora_plus_ratio beside it"),
        ({"learning_rates": {"*.B": 0}}, "greater than 0"),
        ({"optimizer": {"lr": 1}}, "lr"),
    ],
)
def test_what_cannot_be_meant_is_refused(given, told):
    with pytest.raises(ValidationError, match=told):
        TrainConfig.model_validate(given)
