"""Adapter folders: what is written, and that nothing damaged, foreign or half matching is ever loaded."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorica import adapter
from lorica.errors import AdapterError, LoricaError, RequestError, RunError
from lorica.methods import Full, LoRA
from tiny_bases import BERT, GPT2, LLAMA, stir

TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def output(base, model):
    with torch.no_grad():
        return base.output(model)


def saved(folder: Path, base=LLAMA, method=None, **facts):
    """A stirred adapter in a folder, and the output of its base with it."""
    attached = adapter.attach(base.build(torch.float32), method or LoRA(r=3, alpha=7))
    stir(attached.named_parameters())
    attached.save(folder, **facts)
    return output(base, attached.model)


def rewritten(folder, change):
    """The folder as PEFT would have it (no lorica.json), after `change(tensors, config)`."""
    tensors, config = load_file(folder / TENSORS), json.loads((folder / CONFIG).read_text())
    change(tensors, config)
    save_file(tensors, folder / TENSORS)
    (folder / CONFIG).write_text(json.dumps(config))
    (folder / "lorica.json").unlink(missing_ok=True)
    return folder


@pytest.mark.parametrize(
    ("base", "method"),
    [(LLAMA, LoRA(r=3, rslora=True, bias="all")), (GPT2, LoRA(r=2, target_modules="minimal")), (BERT, Full())],
    ids=["llama-lora", "gpt2-lora", "bert-full"],
)
def test_what_is_saved_loads_to_the_bit(base, method, tmp_path):
    expected = saved(tmp_path / "adapter", base, method)
    attached = adapter.load(base.build(torch.float32), tmp_path / "adapter")
    assert torch.equal(output(base, attached.model), expected)


def test_an_adapter_whose_replacement_a_crash_interrupted_is_there_again(tmp_path):
    expected = saved(tmp_path / "new")
    (tmp_path / ".old-out-1-0123abcd").mkdir()
    (tmp_path / "new").rename(tmp_path / ".tmp-out-1-0123abcd")
    attached = adapter.load(LLAMA.build(torch.float32), tmp_path / "out")
    assert torch.equal(output(LLAMA, attached.model), expected)
    (tmp_path / "out").rename(tmp_path / ".old-out-1-0123abcd")
    attached.save(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_folder_holds_float32_tensors_config_manifest_and_card(tmp_path):
    attached = adapter.attach(LLAMA.build(), LoRA(r=3))
    stir(attached.named_parameters())
    attached.save(tmp_path / "a", recipe={"model": "x"}, data="sha", metrics={"eval_loss": 1.5}, parents=["p"])
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "README.md",
        CONFIG,
        TENSORS,
        "lorica.json",
    ]
    assert {t.dtype for t in load_file(tmp_path / "a" / TENSORS).values()} == {torch.float32}
    told = json.loads((tmp_path / "a" / "lorica.json").read_text())
    assert told["format"] == 1
    assert set(told["files"]) == {TENSORS, CONFIG}
    assert told["recipe"] == {"model": "x"}
    assert told["metrics"] == {"eval_loss": 1.5}
    assert told["methods"][0]["name"] == "lora"
    assert "peft_type" in json.loads((tmp_path / "a" / CONFIG).read_text())


def test_a_method_that_peft_lacks_writes_no_peft_type(tmp_path):
    saved(tmp_path / "a", BERT, Full())
    config = json.loads((tmp_path / "a" / CONFIG).read_text())
    assert "peft_type" not in config
    assert config["methods"] == [{"name": "full"}]


def test_targets_are_written_as_the_shortest_names_that_choose_the_same(tmp_path):
    saved(tmp_path / "a", BERT, LoRA(r=2, target_modules="*attention.output.dense"))
    assert json.loads((tmp_path / "a" / CONFIG).read_text())["target_modules"] == ["attention.output.dense"]


def test_an_adapter_folder_is_replaced_and_any_other_is_refused(tmp_path):
    saved(tmp_path / "a")
    saved(tmp_path / "a", method=LoRA(r=2))
    assert adapter.read(tmp_path / "a").methods[0].r == 2
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty"):
        saved(tmp_path / "b")
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["thesis.txt"]


def test_a_value_that_is_not_finite_is_not_saved(tmp_path):
    attached = adapter.attach(LLAMA.build(), LoRA(r=3))
    next(attached.parameters()).data[0, 0] = float("nan")
    with pytest.raises(RunError, match="not finite"):
        attached.save(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_facts_cannot_take_the_names_that_the_adapter_writes(tmp_path):
    with pytest.raises(RequestError, match="files"):
        saved(tmp_path / "a", files={})


@pytest.mark.parametrize("name", [TENSORS, CONFIG])
def test_a_flipped_byte_is_seen(tmp_path, name):
    saved(tmp_path / "a")
    data = bytearray((tmp_path / "a" / name).read_bytes())
    data[-3] ^= 1
    (tmp_path / "a" / name).write_bytes(data)
    with pytest.raises(AdapterError, match="SHA-256"):
        adapter.read(tmp_path / "a")


def test_a_folder_of_pickles_is_refused_with_the_way_to_convert_it(tmp_path):
    (tmp_path / "adapter_model.bin").write_bytes(b"cos\nsystem\n")
    (tmp_path / CONFIG).write_text('{"peft_type": "LORA"}')
    with pytest.raises(AdapterError, match="save_pretrained"):
        adapter.read(tmp_path)


def drop_one(tensors, config):
    del tensors["base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"]


def one_more(tensors, config):
    tensors["base_model.model.model.layers.9.mlp.up_proj.lora_B.weight"] = torch.ones(2, 2)


def not_finite(tensors, config):
    tensors["base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"][0, 0] = float("inf")


def other_rank(tensors, config):
    config["r"] = 5


def a_regular_expression(tensors, config):
    config["rank_pattern"] = {"(a+)+$": 3}


def dora(tensors, config):
    config["use_dora"] = True


def unknown(tensors, config):
    config["spin"] = 3


def pissa(tensors, config):
    config["init_lora_weights"] = "pissa_niter_4"


def another_method(tensors, config):
    config["peft_type"] = "VERAX"


def an_empty_tensor(tensors, config):
    tensors["base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"] = torch.empty(0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop_one, ["missing from the file", "up_proj.lora_B"]),
        (one_more, ["model.layers.9.mlp.up_proj: no such site", "did you mean"]),
        (not_finite, ["not finite", "up_proj.lora_B"]),
        (other_rank, ["(3, 32) in the file, (5, 32)"]),
        (a_regular_expression, ["rank_pattern", "(a+)+$", "only names"]),
        (dora, ["lora_magnitude_vector: missing from the file"]),
        (unknown, ["spin: 3"]),
        (pissa, ["init_lora_weights", "convert it in PEFT"]),
        (another_method, ["VERAX"]),
        (an_empty_tensor, ["is empty"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_does_not_fit_is_refused_by_name_and_the_base_is_untouched(tmp_path, change, words):
    saved(tmp_path / "a")
    rewritten(tmp_path / "a", change)
    model = LLAMA.build(torch.float32)
    expected = output(LLAMA, model)
    with pytest.raises(AdapterError) as refused:
        adapter.load(model, tmp_path / "a")
    for word in words:
        assert word in str(refused.value)
    assert torch.equal(output(LLAMA, model), expected)
    adapter.attach(model, LoRA(r=2))


def test_all_problems_of_a_file_are_told_at_once(tmp_path):
    saved(tmp_path / "a")
    rewritten(tmp_path / "a", lambda tensors, config: (drop_one(tensors, config), one_more(tensors, config)))
    with pytest.raises(AdapterError) as refused:
        adapter.load(LLAMA.build(torch.float32), tmp_path / "a")
    assert len(str(refused.value).splitlines()) == 2


def test_fields_of_other_versions_of_peft_at_their_defaults_are_no_problem(tmp_path):
    def later(tensors, config):
        config |= {"new_thing": None, "newer": False, "newest": {}, "use_dora": False, "layers_to_transform": [0, 1]}
        config |= {"auto_mapping": {"base_model_class": "os", "parent_library": "os"}, "exclude_modules": ["lm_head"]}
        config |= {"target_modules": "(a+)+$", "eva_config": None, "peft_version": "9.9"}

    expected = saved(tmp_path / "a")
    rewritten(tmp_path / "a", later)
    assert torch.equal(output(LLAMA, adapter.load(LLAMA.build(torch.float32), tmp_path / "a").model), expected)


def test_an_untrained_adapter_is_refused_unless_the_caller_says_so(tmp_path):
    adapter.attach(LLAMA.build(), LoRA(r=3)).save(tmp_path / "a")
    with pytest.raises(AdapterError, match="untrained=True"):
        adapter.load(LLAMA.build(), tmp_path / "a")
    adapter.load(LLAMA.build(), tmp_path / "a", untrained=True)


def test_another_base_of_the_same_shapes_is_refused_unless_the_caller_says_so(tmp_path):
    saved(tmp_path / "a")
    other = LLAMA.build(torch.float32)
    other.model.norm.weight.data.mul_(2)
    with pytest.raises(AdapterError, match="another base"):
        adapter.load(other, tmp_path / "a")
    adapter.load(other, tmp_path / "a", other_base=True)


def test_a_loaded_adapter_can_be_frozen(tmp_path):
    saved(tmp_path / "a")
    attached = adapter.load(LLAMA.build(torch.float32), tmp_path / "a", trainable=False)
    assert not any(p.requires_grad for p in attached.parameters())


def test_embeddings_that_peft_writes_beside_an_adapter_must_be_the_bases_own(tmp_path):
    model = LLAMA.build(torch.float32)
    saved(tmp_path / "a", method=LoRA(r=2, target_modules=["embed_tokens"]))
    key, table = "base_model.model.model.embed_tokens.base_layer.weight", model.model.embed_tokens.weight.detach()
    rewritten(tmp_path / "a", lambda tensors, config: tensors.__setitem__(key, table.clone()))
    adapter.load(model, tmp_path / "a").detach()
    rewritten(tmp_path / "a", lambda tensors, config: tensors.__setitem__(key, table + 1))
    with pytest.raises(AdapterError, match="brings its own"):
        adapter.load(model, tmp_path / "a")


@pytest.mark.parametrize("source", ["nowhere", "./nowhere/at/all"])
def test_a_folder_that_is_not_there_is_one_line(source):
    with pytest.raises(LoricaError, match="no such folder") as refused:
        adapter.read(source)
    assert len(str(refused.value).splitlines()) == 1


def test_inspect_gives_the_norm_of_each_update_and_where_it_comes_from(tmp_path):
    saved(tmp_path / "a", GPT2, LoRA(r=3, alpha=7, target_modules=["c_attn", "wte"]), parents=["first/run"])
    told = adapter.inspect(tmp_path / "a")
    tensors = load_file(tmp_path / "a" / TENSORS)
    prefix = "base_model.model.transformer."
    A, B = (tensors[f"{prefix}h.1.attn.c_attn.lora_{x}.weight"].double() for x in "AB")
    EA, EB = (tensors[f"{prefix}wte.lora_embedding_{x}"].double() for x in "AB")
    norms = {site.name: site.norm for site in told.sites}
    assert norms["transformer.h.1.attn.c_attn"] == pytest.approx(float((7 / 3 * B @ A).norm()), rel=1e-12)
    assert norms["transformer.wte"] == pytest.approx(float((7 / 3 * EB @ EA).norm()), rel=1e-12)
    assert told.trained_parameters == sum(t.numel() for t in tensors.values())
    assert told.to_dict()["parents"] == ["first/run"]
    assert told.to_dict()["verified"] is True
    assert "c_attn" in str(told)


def test_inspect_reads_what_was_saved_whole(tmp_path):
    saved(tmp_path / "a", BERT, LoRA(r=2, target_modules=["query"], modules_to_save=["classifier"], bias="lora_only"))
    whole = {site.name: site.norm for site in adapter.inspect(tmp_path / "a").sites if site.kind == "parameter"}
    assert "classifier.weight" in whole
    assert set(whole.values()) == {None}
    saved(tmp_path / "b", BERT, Full())
    assert adapter.inspect(tmp_path / "b").methods == ("full",)
