"""Attached: starts at the base, trains what it names, and leaves the base as it was."""

import warnings

import pytest
import torch
from safetensors.torch import load_file

from lorica import adapter
from lorica.errors import AdapterError, TargetError
from lorica.methods import Full, LoRA, Prefix
from ten_line_methods import Bottleneck
from tiny_bases import BASES, BERT, LLAMA, VIT, stir

EPS = torch.finfo(torch.float64).eps
FROZEN = [LoRA(r=2, bias="lora_only"), LoRA(r=2, init="pissa"), Prefix(length=2)]


@torch.no_grad()
def output(base, model):
    return base.output(model)


def snapshot(model):
    return {name: (p, p.detach().clone(), p.requires_grad) for name, p in model.named_parameters()}


def assert_as_before(model, before):
    now = dict(model.named_parameters())
    assert list(now) == list(before)
    for name, (parameter, value, trained) in before.items():
        assert now[name] is parameter
        assert torch.equal(parameter, value)
        assert parameter.requires_grad == trained


@pytest.mark.parametrize("base", BASES, ids=repr)
@pytest.mark.parametrize("method", [LoRA(r=3, alpha=7, bias="all"), Full()], ids=["lora", "full"])
def test_a_new_adapter_changes_nothing_and_detach_gives_back_every_object(base, method):
    model = base.build()
    next(model.parameters()).requires_grad_(True)
    before, expected = snapshot(model), output(base, model)
    modules = dict(model.named_modules())
    attached = adapter.attach(model, method)
    assert torch.equal(output(base, model), expected)
    stir(attached.named_parameters())
    assert not torch.equal(output(base, model), expected)
    assert attached.detach() is model
    assert_as_before(model, before)
    assert {name: id(m) for name, m in model.named_modules()} == {name: id(m) for name, m in modules.items()}
    assert torch.equal(output(base, model), expected)


def test_the_start_of_a_site_depends_on_seed_and_name_and_not_on_the_others():
    whole = adapter.attach(LLAMA.build(), LoRA(r=3), seed=5).state()
    part = adapter.attach(LLAMA.build(), LoRA(r=3, target_modules=["up_proj"]), seed=5).state()
    other = adapter.attach(LLAMA.build(), LoRA(r=3, target_modules=["up_proj"]), seed=6).state()
    assert all(torch.equal(whole[key], part[key]) for key in part)
    assert not any(torch.equal(other[key], part[key]) for key in part if "lora_A" in key)
    first, second = [value for key, value in part.items() if "lora_A" in key]
    assert not torch.equal(first, second)


def test_a_float64_base_trains_in_float64_and_a_bfloat16_base_in_float32():
    assert {p.dtype for p in adapter.attach(LLAMA.build(), LoRA(r=2)).parameters()} == {torch.float64}
    half = adapter.attach(LLAMA.build(torch.bfloat16), LoRA(r=2, bias="all"))
    assert {p.dtype for p in half.parameters()} == {torch.float32}


def test_the_line_of_trainable_parameters_is_pefts(capsys):
    from peft import LoraConfig, get_peft_model

    warnings.filterwarnings("ignore", category=FutureWarning)  # of transformers, about a name that peft uses
    theirs = get_peft_model(BERT.build(), LoraConfig(r=3, target_modules=["query", "dense"]))
    theirs.print_trainable_parameters()
    expected = capsys.readouterr().out
    adapter.attach(BERT.build(), LoRA(r=3, target_modules=("query", "dense"))).print_trainable_parameters()
    assert capsys.readouterr().out == expected


def test_a_second_adapter_is_refused_with_the_remedy_and_the_first_stays():
    model = LLAMA.build()
    attached = adapter.attach(model, LoRA(r=2))
    stir(attached.named_parameters())
    expected = output(LLAMA, model)
    with pytest.raises(AdapterError, match=r"detach\(\) or merge\(\)"):
        adapter.attach(model, LoRA(r=2))
    assert torch.equal(output(LLAMA, model), expected)
    attached.detach()
    adapter.attach(model, LoRA(r=2))


def test_a_failure_half_way_leaves_the_base_as_it_was():
    class Breaking(LoRA):
        def edits(self, sites, statistics=None):
            *most, last = super().edits(sites)
            return (*most, type(last)(last.site, _breaks))

    def _breaks(start):
        if start.device.type == "meta":
            return torch.nn.Linear(1, 1, device="meta")
        raise RuntimeError("out of memory")

    model = BERT.build()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="out of memory"):
        adapter.attach(model, Breaking(r=2))
    assert_as_before(model, before)
    adapter.attach(model, LoRA(r=2))


@pytest.mark.parametrize("base", BASES, ids=repr)
def test_merging_writes_w_plus_s_b_a_and_the_outputs_stay(base):
    model = base.build()
    attached = adapter.attach(model, LoRA(r=3, alpha=7, bias="lora_only"))
    stir(attached.named_parameters())
    expected = output(base, model)
    assert attached.merge() is model
    assert type(model) is type(base.build())
    assert not any("adapter" in name for name, _ in model.named_modules())
    found = output(base, model)
    assert float((found - expected).abs().max() / expected.abs().max()) < 100 * EPS * 61


def test_the_merged_weight_is_the_explicit_sum_rounded_once():
    model = LLAMA.build(torch.bfloat16)
    site = "model.layers.1.self_attn.q_proj"
    before = model.get_submodule(site).weight.detach().clone()
    attached = adapter.attach(model, LoRA(r=3, alpha=7, target_modules=["1.self_attn.q_proj"]))
    stir(attached.named_parameters())
    A, B = (value.clone() for value in attached.state().values())
    attached.merge()
    expected = (before.float() + 7 / 3 * (B @ A)).bfloat16()
    assert torch.equal(model.get_submodule(site).weight, expected)


def test_what_no_weight_can_hold_is_not_merged_and_stays_attached():
    model = LLAMA.build()
    attached = adapter.attach(model, Bottleneck())
    with pytest.raises(AdapterError, match="cannot be merged"):
        attached.merge()
    output(LLAMA, attached.model)


@pytest.mark.parametrize("end", ["merge", "detach"])
def test_a_finished_handle_says_so_in_one_line(end):
    attached = adapter.attach(LLAMA.build(), LoRA(r=2))
    stir(attached.named_parameters(), 0.02)
    getattr(attached, end)()
    for use in (attached.state, attached.detach, attached.merge, lambda: attached(input_ids=None)):
        with pytest.raises(AdapterError, match="attach or load it again"):
            use()


def test_merging_a_tied_embedding_unties_it_and_leaves_the_head():
    from transformers import LlamaConfig

    from lorica.models.causal_lm import CausalLM

    tied = CausalLM(LlamaConfig(**{**LLAMA.build().config.to_dict(), "tie_word_embeddings": True})).double().eval()
    attached = adapter.attach(tied, LoRA(r=2, target_modules=["embed_tokens"]))
    stir(attached.named_parameters())
    expected = output(LLAMA, tied)
    head = tied.lm_head.weight
    attached.merge()
    assert tied.lm_head.weight is head
    assert tied.config.tie_word_embeddings is False
    assert torch.allclose(output(LLAMA, tied), expected, rtol=0, atol=float(expected.abs().max()) * 100 * EPS)


def test_a_copy_of_a_tied_parameter_is_refused_where_its_file_would_mislead_peft():
    from transformers import LlamaConfig

    from lorica.models.causal_lm import CausalLM

    tied = CausalLM(LlamaConfig(**{**LLAMA.build().config.to_dict(), "tie_word_embeddings": True}))
    with pytest.raises(TargetError, match=r"is tied with lm_head\.weight"):
        adapter.attach(tied, LoRA(r=2, modules_to_save=("embed_tokens",)))
    adapter.attach(tied, Full())


def test_a_state_returns_to_the_bit_and_a_foreign_one_copies_nothing():
    attached = adapter.attach(VIT.build(), LoRA(r=3))
    stir(attached.named_parameters())
    kept = {key: value.clone() for key, value in attached.state().items()}
    stir(attached.named_parameters())
    attached.load_state(kept)
    assert all(torch.equal(value, kept[key]) for key, value in attached.state().items())
    first, *_ = kept
    wrong = {key: value + 1 for key, value in kept.items() if key != first} | {"more": kept[first]}
    with pytest.raises(AdapterError) as refused:
        attached.load_state(wrong)
    assert f"{first}: missing" in str(refused.value)
    assert "more: not part" in str(refused.value)
    assert all(torch.equal(value, kept[key]) for key, value in attached.state().items())


@pytest.mark.parametrize("method", FROZEN, ids=["lora", "pissa", "prefix"])
def test_what_is_frozen_is_saved_all_the_same(method):
    """Loaded for its answers alone, or its A kept as it is: the file holds every tensor."""
    attached = adapter.attach(LLAMA.build(), method)
    stir(attached.named_parameters())
    whole = attached.file().tensors
    for parameter in list(attached.parameters())[::2]:
        parameter.requires_grad_(False)
    frozen = attached.file().tensors
    assert frozen.keys() == whole.keys()
    assert all(torch.equal(frozen[key], whole[key]) for key in whole)


def test_an_adapter_loaded_to_answer_is_saved_and_banked(tmp_path):
    attached = adapter.attach(LLAMA.build(), LoRA(r=2))
    stir(attached.named_parameters())
    attached.save(tmp_path / "first")
    loaded = adapter.load(LLAMA.build(), tmp_path / "first", trainable=False)
    loaded.save(tmp_path / "second")
    files = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("first", "second")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][key], files[1][key]) for key in files[0])
    adapter.Bank(LLAMA.build()).add("a", loaded)


def test_training_mode_can_leave_the_base_in_evaluation():
    attached = adapter.attach(BERT.build(), LoRA(r=2)).train(base=False)
    assert all(module.training for module in attached.modules.values())
    assert not any(m.training for m in attached.model.modules() if isinstance(m, torch.nn.Dropout))
    assert not any(module.training for module in attached.eval().modules.values())


def test_checkpointing_is_switched_off_by_its_undo_and_by_detach():
    attached = adapter.attach(LLAMA.build(), LoRA(r=2))
    undo = attached.checkpoint()
    assert attached.model.model.recomputed_layers > 0
    undo()
    undo()
    assert attached.model.model.recomputed_layers == 0
    attached.checkpoint(1)
    assert attached.detach().model.recomputed_layers == 0
