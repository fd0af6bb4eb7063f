"""Plans: the published counts of Llama 2 7B, coverage, and what is refused before anything is attached."""

import pytest
import torch

from lorica import adapter
from lorica.errors import TargetError
from lorica.methods import Full, LoRA
from lorica.models.causal_lm import CausalLM
from ten_line_methods import Bottleneck
from tiny_bases import BASES, BERT, GPT2, LLAMA


@pytest.fixture(scope="module")
def llama_2_7b():
    from transformers import LlamaConfig

    with torch.device("meta"):
        return CausalLM(LlamaConfig(tie_word_embeddings=False))


@pytest.mark.parametrize(
    ("targets", "trained"), [("minimal", 4_194_304), ("attention", 8_388_608), ("all-linear", 19_988_480)]
)
def test_llama_2_7b_trains_the_published_number_of_parameters(llama_2_7b, targets, trained):
    assert adapter.plan(llama_2_7b, LoRA(r=8, target_modules=targets)).trainable_parameters == trained


def test_the_share_of_llama_2_7b_is_the_published_one(llama_2_7b):
    plan = adapter.plan(llama_2_7b, LoRA(r=8, target_modules="minimal"))
    assert plan.total_parameters == 6_742_609_920
    assert f"{plan.trainable_percent:.4f}" == "0.0622"


def test_full_trains_every_parameter_and_counts_none_twice(llama_2_7b):
    plan = adapter.plan(llama_2_7b, Full())
    assert plan.trainable_parameters == plan.total_parameters == 6_738_415_616


@pytest.mark.parametrize("base", BASES, ids=repr)
def test_a_plan_counts_what_attach_then_trains(base):
    model = base.build()
    plain = adapter.plan(model, LoRA(r=3))
    plan = adapter.plan(model, LoRA(r=3, bias="all", rank_pattern={plain.sites[0].name: 2}))
    assert plan.edits[0].parameters == plain.edits[0].parameters * 2 // 3
    attached = adapter.attach(model, plan)
    trained = {id(p): p.numel() for p in model.parameters() if p.requires_grad}
    assert plan.trainable_parameters == attached.trainable_parameters == sum(trained.values())
    assert {id(p) for p in attached.parameters()} == set(trained)


def test_the_table_names_each_leaf_with_count_shape_and_rank():
    text = str(adapter.plan(LLAMA.build(), LoRA(r=3, alpha=6, target_modules=["q_proj", "mlp.up_proj"])))
    assert "q_proj" in text
    assert "32 x 32" in text
    assert "r=3 s=2" in text
    assert "target_modules: q_proj -> 2, mlp.up_proj -> 2" in text


def test_a_fused_layer_is_reported_as_adapting_more_than_the_preset_names():
    plan = adapter.plan(GPT2.build(), LoRA(target_modules="minimal"))
    assert plan.beyond == ("k",)
    assert "adapts more than the preset names (k)" in str(plan)


def test_a_plan_as_a_dictionary_has_the_keys_that_programs_rely_on():
    told = adapter.plan(BERT.build(), LoRA(r=2, target_modules=["query"])).to_dict()
    assert told["trainable_parameters"] == 2 * 2 * (32 + 32)
    assert [site["name"].rpartition(".")[2] for site in told["sites"]] == ["query", "query"]
    assert told["unmatched"] == []
    assert told["matched"] == {"query": 2}


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (LoRA(target_modules=["qproj", "v_proj", "nothing"]), ["'qproj'", "'q_proj'", "'nothing'"]),
        (LoRA(r=4, rank_pattern={"k_prj": 2}, alpha_pattern={"zzz": 2}), ["rank_pattern", "'k_proj'", "alpha_pattern"]),
        (LoRA(modules_to_save=("lm_hed",)), ["modules_to_save", "'lm_head'"]),
        (LoRA(r=64), ["r: 64 is beyond"]),
        (LoRA(modules_to_save=("norm",)), ["is also the end of"]),
        ([LoRA(), LoRA(r=2)], ["lora and lora", "leave it to one"]),
        ([LoRA(), Full()], ["trained whole and adapted beside"]),
        ([], ["the list is empty"]),
    ],
)
def test_what_does_not_fit_is_refused_with_every_problem_and_the_near_names(method, words):
    with pytest.raises(TargetError) as refused:
        adapter.plan(LLAMA.build(), method)
    for word in words:
        assert word in str(refused.value)


def test_methods_that_edit_different_places_of_one_layer_compose():
    plan = adapter.plan(LLAMA.build(), [LoRA(r=2, target_modules=["o_proj"]), Bottleneck()])
    assert {"around", "after"} == {planned.edit.place for planned in plan.edits}


@pytest.mark.parametrize(("name", "value"), [("lora_alpha", 16), ("lora_dropout", 0.1), ("use_rslora", True)])
def test_a_name_of_peft_is_refused_with_the_name_it_has_here(name, value):
    with pytest.raises(ValueError, match=f"{name} is PEFT's name: write {name.split('_')[-1]}"):
        LoRA(**{name: value})
