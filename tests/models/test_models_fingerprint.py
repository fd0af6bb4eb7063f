"""A fingerprint names the checkpoint: the same however it is loaded or edited, another for any other weights."""

from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from decoder_family import config, theirs
from lorica.models import fingerprint, load_base
from lorica.models.causal_lm import CausalLM
from lorica.models.edited import AfterModule, AroundModule
from lorica.models.fingerprint import BLOCK, BLOCKS, offsets


def write(folder: Path, kind: str) -> Path:
    described = config(kind)
    described.architectures = ["LlamaForCausalLM"]
    (folder / "config.json").write_text(described.to_json_string())
    tensors = {
        name: t for name, t in theirs(kind).state_dict().items() if name != "lm_head.weight" or "tied" not in kind
    }
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_a_folder_its_model_and_the_same_weights_in_transformers_agree(tmp_path: Path) -> None:
    for kind in ("llama", "llama tied"):
        folder = write(tmp_path, kind)
        wanted = fingerprint(folder)
        assert fingerprint(load_base(folder, device="cpu")) == wanted
        assert fingerprint(theirs(kind)) == wanted
        built = CausalLM(config(kind))
        built.load_state_dict(theirs(kind).state_dict())
        assert fingerprint(built) == wanted


def test_a_cast_at_loading_changes_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path, "llama")
    assert fingerprint(load_base(folder, dtype="bfloat16", device="cpu")) == fingerprint(folder)


def test_shards_change_nothing_and_one_changed_element_everything(tmp_path: Path) -> None:
    folder = write(tmp_path, "llama")
    wanted = fingerprint(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][7] += 1e-6
    save_file(tensors, folder / "model.safetensors")
    changed = fingerprint(folder)
    assert changed != wanted
    tensors["model.nrm.weight"] = tensors.pop("model.norm.weight")
    save_file(tensors, folder / "model.safetensors")
    assert fingerprint(folder) not in (changed, wanted)


def test_an_attached_adapter_changes_nothing() -> None:
    model = CausalLM(config("llama"))
    wanted = fingerprint(model)
    attention = model.model.layers[0].self_attn
    attention.q_proj = AroundModule(attention.q_proj, nn.Linear(32, 32))
    attention.o_proj = AfterModule(AroundModule(attention.o_proj, nn.Linear(32, 32)), nn.Linear(32, 32))
    assert fingerprint(model) == wanted
    with torch.no_grad():
        attention.q_proj.base.weight[0, 0] += 1
    assert fingerprint(model) != wanted


def test_blocks_cover_small_tensors_whole_and_both_ends_of_large_ones() -> None:
    for size in (0, 1, BLOCK, BLOCK * BLOCKS):
        covered = {byte for start in offsets(size) for byte in range(start, min(start + BLOCK, size))}
        assert covered == set(range(size))
    large = offsets(10**9)
    assert (len(large), large[0], large[-1]) == (BLOCKS, 0, 10**9 - BLOCK)
    assert {b - a for a, b in pairwise(large)} <= {(10**9 - BLOCK) // 15, (10**9 - BLOCK) // 15 + 1}
