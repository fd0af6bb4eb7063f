"""Bases whose linears are stored quantised: by us, by bitsandbytes in a checkpoint, or by the user."""

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

import lorica
from lorica.errors import AdapterError, ModelError, TargetError
from lorica.kernels.quantised import bytes_of, held_by
from lorica.models import quantised
from lorica.models.loading import load_base, shapes_only
from lorica.models.quantised import Quantisation, QuantisedLinear, quantisable, quantisation_of
from lorica.models.tiled_linear import TiledLinear
from tiny_bases import T5, stir
from tiny_layers import ATTENTION
from traces import traces

IDS = torch.tensor([[5, 9, 3, 22, 41, 7]])
NF4: dict[str, Any] = {"quantize": "nf4", "double_quant": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    place = tmp_path_factory.mktemp("bases") / "llama"
    LlamaForCausalLM(config).bfloat16().save_pretrained(place)
    return place


def four_bit(**more: Any) -> BitsAndBytesConfig:
    given = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": torch.bfloat16}
    return BitsAndBytesConfig(load_in_4bit=True, **{**given, **more})


def linears(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


@pytest.mark.parametrize("form", [NF4, {"quantize": "nf4"}, {"quantize": "fp4"}, {"quantize": "int8"}])
def test_every_linear_but_the_head_is_stored_as_asked(folder: Path, form: dict[str, Any]):
    model = load_base(folder, **form)
    stored = {name: type(module) is QuantisedLinear for name, module in linears(model).items()}
    assert stored.pop("lm_head") is False
    assert len(stored) == 14
    assert all(stored.values())
    asked = Quantisation.of(**form)
    assert quantisation_of(model) == asked
    dense = load_base(folder)
    for name, module in linears(model).items():
        if name != "lm_head":
            W = dense.get_submodule(name).weight
            assert asked is not None
            assert torch.equal(module.weight, asked.store(W.detach()).dense())  # type: ignore[arg-type]


def test_shapes_alone_take_as_many_bytes_as_the_real_weights(folder: Path):
    for form in (NF4, {"quantize": "int8"}):
        real, shapes = lorica.models.sites(load_base(folder, **form)), lorica.models.sites(shapes_only(folder, **form))
        assert real == shapes
        assert sum(site.held_bytes > 0 for site in real if site.kind == "parameter") == 14


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of what else lives in the process
def test_one_tensor_at_a_time_is_dense_while_a_base_is_loaded(folder: Path, monkeypatch):
    alive: list[int] = []
    real = quantised.Quantisation.store

    def wide() -> set[int]:
        gc.collect()
        found = (each for each in gc.get_objects() if isinstance(each, torch.Tensor) and each.dim() == 2)
        dense = [t for t in found if t.dtype == torch.bfloat16 and not t.is_meta and t.numel() >= 64 * 128]
        return {tensor.untyped_storage().data_ptr() for tensor in dense}

    before = wide()

    def counted(self: Quantisation, W: torch.Tensor) -> Any:
        alive.append(len(wide() - before))
        return real(self, W)

    monkeypatch.setattr(quantised.Quantisation, "store", counted)
    load_base(folder, **NF4)
    # beside the one that is quantised: the embedding and the head, which stay dense
    assert max(alive) <= 3


def test_a_checkpoint_that_bitsandbytes_quantised_is_loaded_as_it_is(folder: Path, tmp_path: Path):
    for config, form in ((four_bit(), "nf4"), (BitsAndBytesConfig(load_in_8bit=True), "int8")):
        theirs = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.bfloat16)
        theirs.save_pretrained(tmp_path / form)
        ours = load_base(tmp_path / form)
        assert quantisation_of(ours) == Quantisation(form=form, double=form == "nf4")  # type: ignore[arg-type]
        for name, module in linears(ours).items():
            held, other = held_by(module), held_by(theirs.get_submodule(name))
            assert (held is None) == (other is None)
            if held is not None and other is not None:
                assert torch.equal(held.dense(), other.as_read(held.dtype))
        assert lorica.models.sites(shapes_only(tmp_path / form)) == lorica.models.sites(ours)
        with pytest.raises(ModelError, match=r"stored as .* already; leave quantize out"):
            load_base(tmp_path / form, quantize="nf4")


def test_damaged_parts_of_a_quantised_checkpoint_are_named(folder: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    theirs = AutoModelForCausalLM.from_pretrained(folder, quantization_config=four_bit(), dtype=torch.bfloat16)
    theirs.save_pretrained(tmp_path / "whole")
    tensors = load_file(tmp_path / "whole/model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    state = f"{name}.quant_state.bitsandbytes__nf4"
    facts = json.loads(bytes(tensors[state].tolist()))
    wrong = torch.tensor(list(json.dumps({**facts, "shape": [192, 192]}).encode()), dtype=torch.uint8)
    cases: list[tuple[dict[str, Any], str]] = [
        ({k: v for k, v in tensors.items() if k != f"{name}.absmax"}, "lacks .*absmax"),
        ({**tensors, state: torch.tensor([123, 34, 1], dtype=torch.uint8)}, "no state that bitsandbytes writes"),
        ({**tensors, state: wrong}, "holds .* numbers"),
    ]
    for number, (held, told) in enumerate(cases):
        place = tmp_path / str(number)
        place.mkdir()
        (place / "config.json").write_bytes((tmp_path / "whole/config.json").read_bytes())
        save_file(held, place / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match=told):
            load_base(place)


def test_int8_in_tiles_of_an_older_bitsandbytes_is_refused(folder: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    eight = BitsAndBytesConfig(load_in_8bit=True)
    AutoModelForCausalLM.from_pretrained(folder, quantization_config=eight).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    formats = [name for name in tensors if name.endswith(".weight_format")]
    assert formats
    tensors[formats[0]] = torch.full_like(tensors[formats[0]], 2)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lies in tiles of an older bitsandbytes"):
        load_base(tmp_path)


def as_it_is(model: nn.Module) -> Any:
    """Of eight bits objects and codes alone: their own forward moves the scales from the weight to the module."""
    if any(type(module).__name__ == "Linear8bitLt" for module in model.modules()):
        return {name: (id(module), module.weight.detach().clone().tolist()) for name, module in linears(model).items()}
    return traces(model)


def test_a_model_that_the_user_quantised_is_adapted_as_it_is_and_given_back(folder: Path):
    for config in (four_bit(), BitsAndBytesConfig(load_in_8bit=True)):
        model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.bfloat16)
        before = as_it_is(model)
        for method in (lorica.LoRA(r=2), lorica.DoRA(r=2), lorica.IA3(), lorica.VeRA(r=3), lorica.HiRA(r=2)):
            attached = lorica.attach(model, method)
            assert len(attached.plan.edits) in (14, 6)
            stir(attached.named_parameters())
            loss = attached.model(input_ids=IDS, labels=IDS).loss
            loss.backward()
            assert all(parameter.grad is not None for parameter in attached.parameters())
            with torch.no_grad():
                attached.eval().model(input_ids=IDS)
            attached.detach()
            assert as_it_is(model) == before


def test_an_adapter_of_a_users_quantised_model_answers_alike_on_ours(folder: Path, tmp_path: Path):
    theirs = AutoModelForCausalLM.from_pretrained(folder, quantization_config=four_bit(), dtype=torch.bfloat16)
    attached = lorica.attach(theirs, lorica.LoRA(r=2))
    stir(attached.named_parameters())
    attached.save(tmp_path / "adapter")
    ours = lorica.load(load_base(folder, **NF4), tmp_path / "adapter", other_base=True)
    with torch.no_grad():
        found, expected = ours.model(input_ids=IDS).logits, theirs.eval()(input_ids=IDS).logits
    unit = torch.finfo(torch.bfloat16).eps
    # 15 linears one after another, each rounded to bfloat16, and what norms and softmax amplify (models/numerics)
    assert (found - expected).abs().max() <= 4 * 15**0.5 * unit * expected.abs().max()


def test_what_is_saved_of_a_quantised_base_is_dense(folder: Path, tmp_path: Path):
    model = load_base(folder, **NF4)
    model.save_pretrained(tmp_path / "dense")  # type: ignore[operator]
    again = load_base(tmp_path / "dense")
    assert quantisation_of(again) is None
    assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_merging_leaves_16_bits_and_never_quantises_again(folder: Path):
    attached = lorica.attach(load_base(folder, **NF4), lorica.LoRA(r=2, target_modules="attention"))
    stir(attached.named_parameters())
    expected = {
        p.site.name: attached.modules[p.key].merged(lorica.models.weight_of(attached.model, p.site).dense().float())
        for p in attached.plan.edits
    }
    merged = attached.merge()
    for name, module in linears(merged).items():
        if name in expected:
            assert type(module) is TiledLinear
            assert torch.equal(module.weight, expected[name].to(torch.bfloat16))
        else:
            assert (type(module) is QuantisedLinear) == (name != "lm_head")


def test_a_cast_of_the_model_reaches_no_scale(folder: Path):
    model = load_base(folder, **NF4)
    W = model.model.layers[0].mlp.up_proj.weight  # type: ignore[union-attr, index]
    model.to(torch.float16).to(torch.bfloat16)
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, W)  # type: ignore[union-attr, index]


def test_linears_that_others_read_or_keep_wide_stay_dense():
    t5 = T5.build(torch.float32)
    assert not [name for name in quantisable(t5) if name.endswith(("wo", "lm_head"))]
    assert [name for name in quantisable(t5) if name.endswith("wi_0")]
    assert not [name for name in quantisable(ATTENTION.build(torch.float32)) if "out_proj" in name]


def test_what_cannot_be_is_said(folder: Path):
    with pytest.raises(ModelError, match="did you mean 'nf4'"):
        load_base(folder, quantize="nf")
    with pytest.raises(ModelError, match="double_quant"):
        load_base(folder, double_quant=True)
    with pytest.raises(ModelError, match="double_quant"):
        load_base(folder, quantize="int8", double_quant=True)
    with pytest.raises(TargetError, match="stored as nf4, which full cannot train itself"):
        lorica.attach(load_base(folder, **NF4), lorica.Full())
    stored = json.loads((folder / "config.json").read_text())
    other = folder.parent / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({**stored, "quantization_config": {"quant_method": "gptq"}}))
    (other / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(ModelError, match="quantised by 'gptq'"):
        load_base(other)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantised_checkpoint_is_adapted_merged_and_saved_as_any_other(folder: Path, tmp_path: Path, kind: str):
    config = four_bit() if kind == "nf4" else BitsAndBytesConfig(load_in_8bit=True)
    theirs = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.bfloat16)
    theirs.save_pretrained(tmp_path / "base")
    model = load_base(tmp_path / "base")
    assert {site.dtype for site in lorica.models.sites(model)} == {"bfloat16"}
    attached = lorica.attach(model, lorica.LoRA(r=2))
    stir(attached.named_parameters(), 0.02)
    attached.save(tmp_path / "adapter")
    with pytest.raises(AdapterError, match="a merge writes 16 bits"):
        lorica.merge(tmp_path / "adapter", tmp_path / "none", model=str(tmp_path / "base"))
    merged: Any = attached.merge()
    merged.save_pretrained(tmp_path / "dense")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.bfloat16)
    assert not hasattr(again.config, "quantization_config")
    found, expected = again(IDS).logits, merged(IDS).logits
    assert (found - expected).abs().max() <= 4 * 15**0.5 * torch.finfo(torch.bfloat16).eps * expected.abs().max()


def test_a_model_of_transformers_that_was_quantised_is_trained_by_its_trainer(tmp_path: Path):
    from transformers import BertConfig, BertForMaskedLM, Trainer, TrainingArguments

    shape = {"hidden_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 192}
    BertForMaskedLM(BertConfig(vocab_size=64, **shape)).save_pretrained(tmp_path / "bert")
    theirs = AutoModelForMaskedLM.from_pretrained(tmp_path / "bert", quantization_config=four_bit())
    theirs.save_pretrained(tmp_path / "four")
    model: Any = load_base(tmp_path / "four")
    attached = lorica.attach(model, lorica.LoRA(r=2))
    Trainer(model=model, args=TrainingArguments(output_dir=str(tmp_path / "out"), report_to=[], use_cpu=True))
    stir(attached.named_parameters(), 0.02)
    attached.merge()
    model.save_pretrained(tmp_path / "dense")
    assert quantisation_of(load_base(tmp_path / "dense")) is None


def test_a_base_without_linears_of_its_own_is_refused(tmp_path: Path):
    from tiny_bases import gpt2

    gpt2().save_pretrained(tmp_path / "gpt2")  # type: ignore[operator]
    with pytest.raises(ModelError, match="no linear that can be stored as nf4"):
        load_base(tmp_path / "gpt2", quantize="nf4")


def test_a_cast_changes_what_is_computed_in_and_a_state_is_taken_back(folder: Path):
    model = load_base(folder, dtype="float32", **NF4).to(torch.bfloat16)
    assert {site.dtype for site in lorica.models.sites(model)} == {"bfloat16"}
    state = model.state_dict()
    assert model.load_state_dict(state) == model.load_state_dict(state)
    name = "model.layers.0.mlp.up_proj.weight"
    with pytest.raises(RuntimeError, match="stored quantised, and another weight was given"):
        model.load_state_dict({**state, name: state[name] + 1})


def test_what_is_recorded_of_loading_is_checked(folder: Path):
    from lorica.adapter.origin import loading_of

    assert loading_of({"base": {"load": {"quantize": "nf4", "double_quant": True}}}) == NF4
    assert loading_of({"base": {}}) == {}
    for damaged in ({"quantize": "nf5"}, {"double_quant": True}, 3, {"quantize": ["nf4"], "double_quant": 0}):
        with pytest.raises(AdapterError, match=r"base\.load"):
            loading_of({"base": {"load": damaged}})


def test_bytes_of_a_llama_in_nf4_are_the_papers():
    """6.476e9 linear weights of Llama-2-7B at 4.127 bits: 3.34 GB."""
    with torch.device("meta"):
        weights = [quantised.blank(shape, torch.bfloat16, "nf4", True) for shape in LLAMA_7B]
    total = 32 * sum(map(bytes_of, weights))
    assert total == pytest.approx(6_476_005_376 * (0.5 + 1 / 64 + 4 / (64 * 256)), rel=1e-4)


LLAMA_7B = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]
