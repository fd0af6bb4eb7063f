"""A ramp of ranks by depth becomes a rank pattern that PEFT reads."""

import json
from typing import Any

import pytest
import torch

from lorica.adapter import attach, load, plan
from lorica.errors import RecipeError, TargetError
from lorica.methods import DoRA, LoRA
from lorica.recipe import Recipe
from lorica.site import Site
from tiny_bases import BERT, LLAMA, T5, stir

RAMP: Any = {"from": 4, "to": 16}


def blocks(count: int) -> tuple[Site, ...]:
    """Each with a linear of its own, and a linear after them."""
    inside = tuple(
        Site(name=f"h.{layer}.fc", kind="linear", shape=(64, 48), layer=layer, roles=("fc1",)) for layer in range(count)
    )
    return (*inside, Site(name="pooler", kind="linear", shape=(64, 48)))


@pytest.mark.parametrize(
    ("count", "ramp", "ranks"),
    [
        (4, RAMP, [4, 8, 12, 16]),
        (3, {"from": 9, "to": 2}, [9, 6, 2]),  # 5.5 rounds to the even
        (5, {"from": 4, "to": 4}, [4] * 5),
        (1, RAMP, [4]),
        (32, RAMP, [round(4 + 12 * layer / 31) for layer in range(32)]),
    ],
)
def test_ranks_rise_by_the_same_from_block_to_block(count: int, ramp: Any, ranks: list[int]):
    planned = plan(blocks(count), LoRA(r=7, ramp=ramp))
    (method,) = planned.methods
    assert isinstance(method, LoRA)
    assert [method.rank(site) for site in planned.sites] == [*ranks, 7]
    assert planned.trainable_parameters == (sum(ranks) + 7) * (64 + 48)


def test_it_counts_from_the_first_block_of_the_base_whatever_is_adapted():
    planned = plan(blocks(4), LoRA(ramp=RAMP, target_modules="h.[23].*"))
    assert [planned.methods[0].note(edit.edit) for edit in planned.edits] == ["r=12 s=1.33333", "r=16 s=1"]


def test_what_a_pattern_names_is_not_on_it():
    planned = plan(blocks(4), LoRA(ramp=RAMP, rank_pattern={"h.1.fc": 3}))
    (method,) = planned.methods
    assert isinstance(method, LoRA)
    assert [method.rank(site) for site in planned.sites] == [4, 3, 12, 16, 8]


def test_an_encoder_and_a_decoder_count_their_own_blocks():
    (method,) = plan(T5.build(), LoRA(ramp={"from": 1, "to": 4})).methods  # type: ignore[arg-type]
    assert isinstance(method, LoRA)
    ranks = {name: rank for name, rank in method.rank_pattern.items() if name.endswith("SelfAttention.q")}
    assert list(ranks.values()) == [1, 4, 1, 4]


def test_a_base_without_blocks_is_an_error():
    with pytest.raises(TargetError, match="ramp: nothing that is adapted stands in a block"):
        plan(blocks(0), LoRA(ramp=RAMP))
    with pytest.raises(TargetError, match="ramp"):
        attach(BERT.build(), LoRA(ramp=RAMP, target_modules=("pooler.dense",)))


def test_a_rank_beyond_a_layer_is_an_error_that_names_it():
    with pytest.raises(TargetError, match=r"r: 65 is beyond h\.3\.fc"):
        plan(blocks(4), LoRA(ramp={"from": 4, "to": 65}))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [LoRA, DoRA])
def test_the_file_holds_the_pattern(kind: type[LoRA], tmp_path):
    attached = attach(LLAMA.build(torch.float32), kind(alpha=9, ramp={"from": 1, "to": 4}, target_modules=("q_proj",)))  # type: ignore[arg-type]
    stir(attached.named_parameters())
    attached.save(tmp_path)
    told = json.loads((tmp_path / "adapter_config.json").read_text())
    ranks = {f"model.layers.{layer}.self_attn.q_proj": rank for layer, rank in enumerate((1, 4))}
    assert told["rank_pattern"] == ranks
    assert "ramp" not in told
    again = load(LLAMA.build(torch.float32), tmp_path)
    assert torch.equal(LLAMA.output(again.model), LLAMA.output(attached.model))


def test_a_config_says_it_as_a_recipe_does():
    method = LoRA.model_validate({"ramp": {"from": "4", "to": 16}})
    assert method.model_dump(mode="json")["ramp"] == RAMP
    assert LoRA.model_validate(method.model_dump(mode="json")) == method
    with pytest.raises(ValueError, match="start"):
        LoRA.model_validate({"ramp": {"from": 4, "to": 16, "start": 1}})


def test_an_unknown_key_of_a_ramp_is_told_with_its_path():
    fields: Any = {"name": "lora", "ramp": {"form": 4, "to": 16}}
    with pytest.raises(RecipeError, match=r"method\.ramp\.form: unknown key; did you mean 'from'\?"):
        Recipe(model="embedded", method=fields, data="train.jsonl")
