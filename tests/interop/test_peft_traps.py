"""Where PEFT and the mathematics disagree, ours is W + s B A, and what a file cannot say is refused by name."""

import warnings
from copy import deepcopy

import peft
import pytest
import torch
import transformers
from peft_bases import BASES, add_noise, distance, only_their_own_warnings, rounding
from safetensors.torch import load_file, save_file
from torch import nn

from lorica import adapter
from lorica.errors import AdapterError, RecipeError
from lorica.methods import LoRA
from lorica.models import load_base

WIDTH, R, ALPHA = 16, 3, 7


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x):
        y = self.first(x)
        return self.attn(y, y, y, need_weights=False)[0]


@pytest.fixture
def made():
    torch.manual_seed(0)
    return lambda kind: kind().eval()


def with_peft(base, folder, *targets):
    """The adapted model of PEFT, and its folder."""
    config = peft.LoraConfig(r=R, lora_alpha=ALPHA, target_modules=list(targets), init_lora_weights=False)
    with only_their_own_warnings():
        model = peft.get_peft_model(base, config).eval()
        model.save_pretrained(folder)
    return model


def test_the_output_projection_of_torchs_attention_is_adapted_although_peft_leaves_it_alone(made, tmp_path):
    """nn.MultiheadAttention reads `out_proj.weight` without calling the module, so PEFT's wrapper is never reached."""
    base = made(Attention)
    x = torch.randn(2, 5, WIDTH)
    with torch.no_grad():
        before = base(x)
        theirs = with_peft(deepcopy(base), tmp_path, "attn.out_proj")(x)
        ours = adapter.load(deepcopy(base), tmp_path)(x)
        stored = load_file(tmp_path / "adapter_model.safetensors")
        A, B = (stored[f"base_model.model.attn.out_proj.lora_{factor}.weight"] for factor in "AB")
        base.attn.out_proj.weight += ALPHA / R * B @ A
        expected = base(x)
    assert torch.equal(theirs, before)
    assert distance(expected, before) > 0.1
    assert distance(ours, expected) < 1e-6


def test_overlapping_patterns_that_peft_saved_in_another_order_are_refused(made, tmp_path):
    """PEFT takes the first key that matches and sorts keys when it saves; it cannot read such a file itself."""
    base = made(Attention)
    config = peft.LoraConfig(r=R, target_modules=["first"], rank_pattern={"first": 5, ".*first": 2})
    with only_their_own_warnings():
        peft.get_peft_model(deepcopy(base), config).save_pretrained(tmp_path)
        with pytest.raises(RuntimeError, match="size mismatch"):
            peft.PeftModel.from_pretrained(deepcopy(base), tmp_path)
    with pytest.raises(AdapterError, match=r"rank_pattern"):
        adapter.load(base, tmp_path)


def test_a_folder_of_several_adapters_names_them(made, tmp_path):
    base = made(Attention)
    config = peft.LoraConfig(r=R, target_modules=["first"], init_lora_weights=False)
    with only_their_own_warnings():
        model = peft.get_peft_model(deepcopy(base), config, adapter_name="sql")
        model.add_adapter("json", config)
        model.save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match="but in json, sql; name one"):
        adapter.load(base, tmp_path)
    assert adapter.load(base, tmp_path / "sql").trainable_parameters == R * 2 * WIDTH


def test_a_tensor_of_the_base_beside_an_adapter_is_accepted_only_unchanged(made, tmp_path):
    base = made(Attention)
    with_peft(deepcopy(base), tmp_path, "first")
    path = tmp_path / "adapter_model.safetensors"
    key = "base_model.model.attn.out_proj.weight"
    beside = {**load_file(path), key: base.attn.out_proj.weight.detach().clone()}
    save_file(beside, path)
    adapter.load(base, tmp_path).detach()
    save_file({**beside, key: beside[key] + 1}, path)
    with pytest.raises(AdapterError, match=f"{key}: in the file, and nothing in adapter_config.json asks for it"):
        adapter.load(base, tmp_path)


def test_every_refused_field_of_a_config_comes_with_a_remedy():
    fields = {"use_dora": True, "lora_bias": True, "layers_to_transform": [1], "exclude_modules": ["k_proj"]}
    with pytest.raises(RecipeError) as told:
        LoRA.from_peft({**fields, "target_modules": ["q_proj"]})
    lines = str(told.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == sorted(fields)
    assert all("; " in line for line in lines)


@pytest.mark.parametrize("names", [["lm_head"], ["wte", "lm_head"]], ids=" and ".join)
def test_tied_modules_that_peft_saved_whole_have_copies_of_their_own(names, tmp_path):
    """PEFT trains each apart; merging unties the base, in memory and on disk."""
    base = next(base for base in BASES if base.name == "gpt2")
    folder = base.saved(tmp_path / "base")
    config = peft.LoraConfig(r=2, lora_alpha=7, target_modules=["c_attn"], modules_to_save=names, fan_in_fan_out=True)
    with only_their_own_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
        model = peft.get_peft_model(transformers.GPT2LMHeadModel.from_pretrained(folder), config).eval()
        add_noise([parameter for parameter in model.parameters() if parameter.requires_grad])
        expected = model(**base.inputs()).logits
        model.save_pretrained(tmp_path / "adapter")
        ours = load_base(folder)
        tied = ours.lm_head.weight
        attached = adapter.load(ours, tmp_path / "adapter")
        assert distance(attached(**base.inputs()).logits, expected) < rounding(ours)
        assert attached.detach().lm_head.weight is tied
        assert ours.transformer.wte.weight is tied
        adapter.merge_checkpoint(folder, tmp_path / "adapter", tmp_path / "merged")
        for merged in (adapter.load(ours, tmp_path / "adapter").merge(), load_base(tmp_path / "merged")):
            assert merged.lm_head.weight is not merged.transformer.wte.weight
            assert distance(merged(**base.inputs()).logits, expected) < rounding(merged)


def test_an_adapter_on_a_tied_head_merges_into_a_checkpoint_without_its_embeddings(tmp_path):
    """PEFT writes the head's own weight beside it, which merging leaves aside."""
    base = next(base for base in BASES if base.name == "gpt2")
    folder = base.saved(tmp_path / "base")
    config = peft.LoraConfig(r=2, lora_alpha=7, target_modules=["lm_head"], init_lora_weights=False)
    with only_their_own_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
        warnings.filterwarnings("ignore", message="Setting `save_embedding_layers` to `True`")
        model = peft.get_peft_model(transformers.GPT2LMHeadModel.from_pretrained(folder), config).eval()
        expected = model(**base.inputs()).logits
        model.save_pretrained(tmp_path / "adapter")
        adapter.merge_checkpoint(folder, tmp_path / "adapter", tmp_path / "merged")
        merged = load_base(tmp_path / "merged")
        assert distance(merged(**base.inputs()).logits, expected) < rounding(merged)
