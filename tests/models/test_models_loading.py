"""Loading a base: every layout of a checkpoint reads as transformers reads it, and every fault is one line."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from decoder_family import config, theirs, tokens
from lorica.errors import ModelError
from lorica.models import generate, load_base, shapes_only, sites
from lorica.models.causal_lm import CausalLM
from lorica.models.loading import parse_device

CPU = {"device": "cpu"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write(folder, "llama")
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def write(folder: Path, kind: str, dtype: torch.dtype = torch.float32) -> None:
    """A folder as transformers writes it, without its progress bars."""
    folder.mkdir(exist_ok=True)
    model = theirs(kind, dtype)
    described = config(kind)
    described.architectures, described.dtype = [type(model).__name__], str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(described.to_json_string())
    tied = {"lm_head.weight"} if described.tie_word_embeddings else set()
    save_file({name: t for name, t in model.state_dict().items() if name not in tied}, folder / "model.safetensors")


def shard(folder: Path, parts: int = 3) -> dict[str, str]:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    place = {name: f"model-{index % parts + 1:05}-of-{parts:05}.safetensors" for index, name in enumerate(tensors)}
    for file in set(place.values()):
        save_file({name: tensors[name] for name in tensors if place[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": place}))
    return place


def refusal(*args: Any, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load_base(*args, **{**CPU, **options})
    return str(caught.value)


def change(folder: Path, **entries: Any) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, **entries}))


@pytest.mark.parametrize("kind", ["llama", "llama tied", "mistral sliding", "qwen2", "qwen3 tied and sliding"])
def test_a_decoder_read_from_its_files_computes_what_transformers_does(kind: str, tmp_path: Path) -> None:
    write(tmp_path, kind)
    model, ids = load_base(tmp_path, **CPU), tokens(2, 9)
    assert isinstance(model, CausalLM)
    wanted = theirs(kind)(ids).logits
    assert (model(ids).logits - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.source == str(tmp_path)
    assert model.tokenizer is None


def test_tied_embeddings_are_one_parameter_whichever_name_is_stored(tmp_path: Path) -> None:
    write(tmp_path, "llama tied")
    first = load_base(tmp_path, **CPU)
    assert first.lm_head.weight is first.model.embed_tokens.weight
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    second = load_base(tmp_path, **CPU)
    assert torch.equal(second.model.embed_tokens.weight, first.model.embed_tokens.weight)
    assert second.lm_head.weight is second.model.embed_tokens.weight
    tensors["model.embed_tokens.weight"] = tensors["lm_head.weight"] + 1
    save_file(tensors, tmp_path / "model.safetensors")
    assert "lm_head.weight" in refusal(tmp_path)


def test_a_sharded_checkpoint_reads_as_the_single_file_does(saved: Path, folder: Path) -> None:
    shard(folder)
    found, wanted = load_base(folder, **CPU).state_dict(), load_base(saved, **CPU).state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
def test_the_type_is_the_checkpoints_own_unless_another_is_asked_for(stored: torch.dtype, tmp_path: Path) -> None:
    write(tmp_path, "llama", stored)
    model = load_base(tmp_path, **CPU)
    assert {parameter.dtype for parameter in model.parameters()} == {stored}
    weight = load_file(tmp_path / "model.safetensors")["lm_head.weight"]
    assert torch.equal(model.lm_head.weight, weight)
    for asked in ("float32", torch.float32, "torch.float32"):
        assert torch.equal(load_base(tmp_path, dtype=asked, **CPU).lm_head.weight, weight.float())
    raw = json.loads((tmp_path / "config.json").read_text())
    raw.pop("dtype")
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert load_base(tmp_path, **CPU).lm_head.weight.dtype == stored


def test_a_model_keeps_its_weights_when_its_files_are_rewritten(folder: Path) -> None:
    model = load_base(folder, **CPU)
    before = model.lm_head.weight.clone()
    file = folder / "model.safetensors"
    size = file.stat().st_size
    with file.open("r+b") as stream:
        stream.seek(size // 2)
        stream.write(bytes(size - size // 2))
    assert torch.equal(model.lm_head.weight, before)


def test_any_other_architecture_is_loaded_as_transformers_own(tmp_path: Path) -> None:
    import transformers

    described = transformers.BertConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=40
    )
    described.architectures = ["BertForMaskedLM"]
    wanted = transformers.BertForMaskedLM(described).eval()
    (tmp_path / "config.json").write_text(described.to_json_string())
    tensors = {name: t for name, t in wanted.state_dict().items() if "decoder" not in name}
    save_file(tensors, tmp_path / "model.safetensors")
    model = load_base(tmp_path, **CPU)
    assert type(model) is transformers.BertForMaskedLM
    assert not model.training
    assert torch.equal(model(tokens(2, 7)).logits, wanted(tokens(2, 7)).logits)
    tensors.pop("bert.encoder.layer.0.output.dense.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    assert "no tensor for bert.encoder.layer.0.output.dense.weight" in refusal(tmp_path)


def test_a_decoder_that_ours_does_not_compute_stays_with_transformers(folder: Path) -> None:
    change(folder, hidden_act="gelu")
    assert type(load_base(folder, **CPU)).__name__ == "LlamaForCausalLM"


def test_names_and_shapes_are_strict_and_all_reported_at_once(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.gate_prj.weight"] = tensors.pop("model.layers.0.mlp.gate_proj.weight")
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:, :8].contiguous()
    save_file(tensors, folder / "model.safetensors")
    lines = refusal(folder).splitlines()
    assert len(lines) == 3
    assert "no tensor model.layers.0.mlp.gate_proj.weight" in lines[0]
    assert "model.layers.0.mlp.gate_prj.weight is no tensor" in lines[1]
    assert "lm_head.weight is (61, 8), the config says (61, 32)" in lines[2]


def test_stored_frequencies_of_old_checkpoints_are_passed_over(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, folder / "model.safetensors")
    assert isinstance(load_base(folder, **CPU), CausalLM)


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _shard_gone(folder: Path) -> None:
    place = shard(folder)
    (folder / sorted(set(place.values()))[1]).unlink()


def _shard_outside(folder: Path) -> None:
    place = shard(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {next(iter(place)): "../x"}}))


FAULTS = {
    "cut short": (_cut, "damaged"),
    "emptied": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "damaged"),
    "pickled": (_pickled, "save_pretrained"),
    "without weights": (lambda folder: (folder / "model.safetensors").unlink(), "no safetensors weights"),
    "without config": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "with a broken config": (lambda folder: (folder / "config.json").write_text("{"), "not readable as JSON"),
    "of an unknown kind": (lambda folder: change(folder, model_type="lama"), "did you mean 'llama'"),
    "of no kind": (lambda folder: change(folder, model_type=None), "no model_type"),
    "with code of its own": (
        lambda folder: change(folder, model_type="mine", auto_map={"AutoModel": "x.Y"}),
        "code from its own repository",
    ),
    "of no class": (lambda folder: change(folder, architectures=["MineLM"]), "has no MineLM"),
    "quantised": (lambda folder: change(folder, quantization_config={"quant_method": "gptq"}), "quantised"),
    "a shard short": (_shard_gone, "1 of 3 shards are missing"),
    "reaching outside": (_shard_outside, "outside its folder"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_folder_is_refused_in_one_line(fault: str, folder: Path) -> None:
    spoil, said = FAULTS[fault]
    spoil(folder)
    message = refusal(folder)
    assert said in message
    assert "\n" not in message
    assert str(folder) in message


def test_what_is_asked_for_is_checked_before_anything_is_read(saved: Path, tmp_path: Path) -> None:
    assert "did you mean 'bfloat16'" in refusal(saved, dtype="bfloat61")
    assert "did you mean 'nf4'" in refusal(saved, quantize="nf")
    assert "no such folder" in refusal(tmp_path / "none")
    assert "no such folder" in refusal("./none/of/these")
    assert "a file" in refusal(saved / "model.safetensors")
    with pytest.raises(ModelError, match="no device"):
        parse_device("gpu")


def test_offline_a_base_that_is_not_in_the_cache_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for read in (load_base, shapes_only):
        with pytest.raises(ModelError) as caught:
            read("nobody/nothing")
        assert str(caught.value).startswith("nobody/nothing: not in the local cache, and HF_HUB_OFFLINE is set")
        assert "\n" not in str(caught.value)


def test_loading_says_nothing(saved: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_base(saved, **CPU)
    shapes_only(saved)
    assert capfd.readouterr() == ("", "")


def test_shapes_need_the_config_alone_and_any_size_is_at_hand(saved: Path, tmp_path: Path) -> None:
    shutil.copy(saved / "config.json", tmp_path)
    assert sites(shapes_only(tmp_path)) == sites(load_base(saved, **CPU))
    change(
        tmp_path,
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
        head_dim=128,
        dtype="bfloat16",
    )
    model = shapes_only(tmp_path / "config.json")
    assert sum(parameter.numel() for parameter in model.parameters()) == 70_553_706_496
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert {site.dtype for site in sites(model)} == {"bfloat16"}


def test_the_embedded_base_loads_by_its_name_and_writes_text() -> None:
    model = load_base("embedded", **CPU)
    assert isinstance(model, CausalLM)
    assert sites(shapes_only("embedded")) == sites(model)
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert sum(parameter.numel() for parameter in model.parameters()) <= 7_700_000
    text = "import os\nimport "
    ids = model.tokenizer.encode(text)
    assert model.tokenizer.decode(ids) == text
    assert len(generate(model, [ids], 3)[0]) == 3
