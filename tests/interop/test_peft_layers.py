"""Adapters on convolutions, nn.MultiheadAttention and experts travel between PEFT and Lorica, both ways.

Where PEFT computes something else than W + s B A on them, the mathematics is asserted, and PEFT's own merge as witness.
"""

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import peft
import pytest
import torch
from peft_bases import add_noise, distance, only_their_own_warnings
from safetensors.torch import load_file
from torch import Tensor, nn

from lorica import adapter
from lorica.adapter import inspect
from lorica.errors import AdapterError
from lorica.methods import LoRA
from lorica.models import sites
from tiny_layers import ATTENTION, CONVNET, GPT_OSS, MOE, UNET, Base

R, ALPHA = 2, 7
ROUNDING = 1e-5
"""float32 through fewer than twenty layers, sums of at most a hundred terms."""
TENSORS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Case:
    base: Base
    given: dict[str, Any]
    """What PEFT's config says beside r and alpha."""
    ours: tuple[str, ...]
    """The same in `target_modules`."""

    def config(self) -> peft.LoraConfig:
        return peft.LoraConfig(r=R, lora_alpha=ALPHA, **deepcopy(self.given))

    def __repr__(self) -> str:
        return self.base.name


EXPERTS = ["experts.down_proj", "experts.gate_up_proj"]
UNET_NAMES = ("to_q", "to_out.0", "conv1", "conv2", "time_emb_proj", "conv_in", "downsample")
PATTERNS = {"rank_pattern": {"gate_up_proj": 3}, "alpha_pattern": {"q_proj": 5}}
CASES = [
    Case(CONVNET, {"target_modules": ["strided"]}, ("strided",)),
    Case(UNET, {"target_modules": list(UNET_NAMES), "rank_pattern": {"conv2": 3}}, UNET_NAMES),
    Case(MOE, {"target_modules": ["q_proj"], "target_parameters": EXPERTS, **PATTERNS}, ("q_proj", *EXPERTS)),
    Case(GPT_OSS, {"target_modules": [], "target_parameters": EXPERTS[:1]}, ("down_proj",)),
]
cases = pytest.mark.parametrize("case", CASES, ids=repr)


def theirs(case: Case, noise: bool = True) -> nn.Module:
    with their_warnings():
        model = peft.get_peft_model(case.base.build(torch.float32), case.config()).eval()
    if noise:
        add_noise([p for p in model.parameters() if p.requires_grad])
    return model


@contextmanager
def their_warnings() -> Iterator[None]:
    """PEFT applies patterns to parameters, and says that it did not: it looks for their keys among modules alone."""
    with only_their_own_warnings():
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys did not match")
        warnings.filterwarnings("ignore", message="Could not find a config file")
        yield


def saved(model: nn.Module, folder) -> None:
    with their_warnings():
        model.save_pretrained(folder)


@cases
def test_what_peft_saves_computes_the_same_here(case: Case, tmp_path):
    base = case.base.build(torch.float32)
    with torch.no_grad():
        model = theirs(case)
        expected, before = case.base.output(model), case.base.output(base)
        saved(model, tmp_path)
        attached = adapter.load(base, tmp_path)
        assert distance(expected, before) > 0.05
        assert distance(case.base.output(base), expected) < ROUNDING
        assert torch.equal(case.base.output(attached.detach()), before)


@cases
def test_what_is_saved_here_computes_the_same_in_peft(case: Case, tmp_path):
    base = case.base.build(torch.float32)
    method = LoRA.from_peft(case.config(), sites(base))
    assert set(method.target_modules) == set(case.ours) or case.base is GPT_OSS
    attached = adapter.attach(base, method)
    add_noise(attached.parameters())
    with torch.no_grad():
        expected = case.base.output(base)
    attached.save(tmp_path / "ours")
    blank = theirs(case, noise=False)
    with their_warnings(), torch.no_grad():
        told = peft.set_peft_model_state_dict(blank, load_file(tmp_path / "ours" / TENSORS))
        assert distance(case.base.output(blank), expected) < ROUNDING
        loaded = peft.PeftModel.from_pretrained(case.base.build(torch.float32), tmp_path / "ours").eval()
        assert distance(case.base.output(loaded), expected) < ROUNDING
    assert told.unexpected_keys == []
    assert {name for name, p in blank.named_parameters() if p.requires_grad}.isdisjoint(told.missing_keys)


@cases
def test_a_round_trip_returns_every_tensor_to_the_bit(case: Case, tmp_path):
    saved(theirs(case), tmp_path / "theirs")
    adapter.load(case.base.build(torch.float32), tmp_path / "theirs").save(tmp_path / "ours")
    before, after = load_file(tmp_path / "theirs" / TENSORS), load_file(tmp_path / "ours" / TENSORS)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], before[key]) for key in after)


@cases
def test_inspect_knows_the_layers_from_the_files_alone(case: Case, tmp_path):
    """Names, shapes and norms, as the handle on the base has them."""
    saved(theirs(case), tmp_path)
    attached = adapter.load(case.base.build(torch.float32), tmp_path)
    norms, shapes = attached.update_norms(), {site.name: site.shape for site in attached.plan.sites}
    told = {site.name: site for site in inspect(tmp_path).sites}
    assert {name: site.shape for name, site in told.items()} == shapes
    assert all(site.norm == pytest.approx(norms[name], rel=1e-5) for name, site in told.items())


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x, x, x, need_weights=False)[0]


@pytest.fixture
def attention() -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        torch.manual_seed(0)
        return Attention().eval()

    return made


def test_peft_adds_its_update_of_an_output_projection_twice_and_we_add_it_once(attention, tmp_path):
    """peft 3774.  The tensors are read as they are: ours is both updates once, PEFT's is the second one twice."""
    config = peft.LoraConfig(r=R, lora_alpha=ALPHA, target_modules=["attn"], init_lora_weights=False)
    x = torch.randn(2, 5, 16)
    with only_their_own_warnings(), torch.no_grad():
        model = peft.get_peft_model(attention(), config).eval()
        saved(model, tmp_path)
        found = model(x)
        base = attention()
        attached = adapter.load(base, tmp_path)
        stored = load_file(tmp_path / TENSORS)
        A, B = (stored[f"base_model.model.attn.lora_{factor}.weight"] for factor in "AB")
        C, D = (stored[f"base_model.model.attn.base_layer.out_proj.lora_{factor}.weight"] for factor in "AB")
        plain = attention()
        plain.attn.in_proj_weight += ALPHA / R * B @ A
        plain.attn.out_proj.weight += ALPHA / R * D @ C
        once = plain(x)
        plain.attn.out_proj.weight += ALPHA / R * D @ C
        assert distance(base(x), once) < ROUNDING
        assert distance(found, plain(x)) < ROUNDING
        assert distance(found, once) > 0.1
        attached.save(tmp_path / "again")
        assert load_file(tmp_path / "again" / TENSORS).keys() == stored.keys()
        assert distance(attached.merge()(x), once) < ROUNDING


def test_biases_and_a_dropout_that_peft_does_not_apply_to_an_attention_are_read_and_written(attention, tmp_path):
    config = peft.LoraConfig(r=R, lora_alpha=ALPHA, target_modules=["attn"], bias="all", lora_dropout=0.3)
    with only_their_own_warnings():
        model = peft.get_peft_model(attention(), config).eval()
    add_noise([p for p in model.parameters() if p.requires_grad])
    saved(model, tmp_path / "theirs")
    attached = adapter.load(attention(), tmp_path / "theirs")
    attached.save(tmp_path / "ours")
    before, after = load_file(tmp_path / "theirs" / TENSORS), load_file(tmp_path / "ours" / TENSORS)
    assert before.keys() == after.keys()
    assert "base_model.model.attn.base_layer.out_proj.base_layer.bias" in after
    assert all(torch.equal(after[key], before[key]) for key in after)
    x = torch.randn(2, 5, 16)
    assert torch.equal(attached.train()(x), attached.eval()(x))


def test_an_attention_is_peft_s_where_both_projections_are_adapted_alike(attention, tmp_path):
    """Otherwise the folder names no `peft_type`, and loads here."""
    x, names = torch.randn(2, 5, 16), {"whole": ("attn",), "one": ("in_proj_weight",)}
    patterned = LoRA(r=3, alpha=5, target_modules=("attn",), rank_pattern={"out_proj": 2})
    same = LoRA(r=3, alpha=5, target_modules=("attn",), rank_pattern={"attn": 2})
    methods = {name: LoRA(r=3, alpha=5, target_modules=targets) for name, targets in names.items()}
    for name, method in {**methods, "patterned": patterned, "same": same}.items():
        attached = adapter.attach(attention(), method)
        add_noise(attached.parameters())
        with torch.no_grad():
            expected = attached(x)
            attached.save(tmp_path / name)
            assert torch.equal(adapter.load(attention(), tmp_path / name)(x), expected)
        config = json.loads((tmp_path / name / "adapter_config.json").read_text())
        assert ("peft_type" in config) == (name in ("whole", "same"))
        assert inspect(tmp_path / name).trained_parameters == attached.trainable_parameters
    with only_their_own_warnings():
        read = peft.PeftModel.from_pretrained(attention(), tmp_path / "same")
    assert read.base_model.model.attn.lora_A["default"].weight.shape == (2, 16)


class Convolution(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(4, 6, 3, **options), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.conv(x).mean((2, 3)))


READINGS = [{"dilation": 2, "padding": 2}, {"padding": 1, "padding_mode": "circular"}]


def filled(options: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    return Convolution(**options).eval()


@pytest.mark.parametrize("options", READINGS, ids=["dilation", "circular padding"])
def test_a_convolution_is_read_by_its_update_as_by_its_weight_although_peft_reads_otherwise(options, tmp_path):
    """peft 3697, 3758: its A is made without dilation and padding mode.  What it merges is what we compute."""
    config = peft.LoraConfig(r=R, lora_alpha=ALPHA, target_modules=["conv"], init_lora_weights=False)
    x = torch.randn(2, 4, 7, 7)
    with only_their_own_warnings(), torch.no_grad():
        model = peft.get_peft_model(filled(options), config).eval()
        saved(model, tmp_path)
        ours = adapter.load(filled(options), tmp_path)(x)
        try:
            found = model(x)
        except RuntimeError:  # its A makes a larger image, which cannot be added
            found = torch.full_like(ours, torch.inf)
        assert distance(found, ours) > 0.01
        assert distance(model.merge_and_unload()(x), ours) < ROUNDING


def test_peft_s_adapter_of_a_grouped_convolution_is_refused_by_name(tmp_path):
    """Its A reads all channels, so no weight of the convolution is what it computes; PEFT refuses to merge it."""
    config = peft.LoraConfig(r=R, lora_alpha=ALPHA, target_modules=["conv"], init_lora_weights=False)
    with only_their_own_warnings(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="LoRA adapter added to ConvNd layer with groups > 1")
        model = peft.get_peft_model(filled({"groups": 2}), config)
    saved(model, tmp_path)
    with pytest.raises(NotImplementedError):
        model.merge_and_unload()
    with pytest.raises(AdapterError, match="conv: PEFT's adapter of a convolution with groups is no weight of one"):
        adapter.load(filled({"groups": 2}), tmp_path)


def test_a_grouped_convolution_is_saved_as_our_own(tmp_path):
    attached = adapter.attach(filled({"groups": 2}), LoRA(r=R, alpha=ALPHA, target_modules=("conv", "out")))
    add_noise(attached.parameters())
    attached.save(tmp_path)
    assert "peft_type" not in json.loads((tmp_path / "adapter_config.json").read_text())
    again, x = adapter.load(filled({"groups": 2}), tmp_path), torch.randn(2, 4, 7, 7)
    assert torch.equal(again(x), attached(x))
    assert {site.name: site.shape for site in inspect(tmp_path).sites}["conv"] == (6, 2, 3, 3)


class Mixed(nn.Module):
    """Experts beside a convolution with groups, which together make a folder that PEFT cannot have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 3, groups=2, padding=1)
        self.experts = Experts()

    def forward(self, x: Tensor) -> Tensor:
        return self.experts(self.conv(x))


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 6, 5))
        self.down = nn.Parameter(torch.randn(3, 5, 6))

    def forward(self, x: Tensor) -> Tensor:
        return sum(torch.tanh(x @ self.up[e].T) @ self.down[e].T for e in range(3))  # type: ignore[return-value]


def test_experts_in_a_folder_that_is_no_peft_s_say_themselves_whose_their_tensors_are(tmp_path):
    torch.manual_seed(0)
    base, x = Mixed().eval(), torch.randn(2, 4, 5)
    attached = adapter.attach(deepcopy(base), LoRA(r=R, alpha=ALPHA, target_modules="*"))
    add_noise(attached.parameters())
    norms = attached.update_norms()
    attached.save(tmp_path)
    assert "peft_type" not in json.loads((tmp_path / "adapter_config.json").read_text())
    assert {site.name: site.norm for site in inspect(tmp_path).sites} == pytest.approx(norms, rel=1e-5)
    assert torch.equal(adapter.load(base, tmp_path)(x), attached(x))


def test_an_attention_whose_keys_have_another_width_is_our_own(tmp_path):
    base = ATTENTION.build(torch.float32)
    attached = adapter.attach(base, LoRA(r=R, alpha=ALPHA, target_modules=("cross",)))
    assert {site.leaf for site in attached.plan.sites} == {
        "q_proj_weight",
        "k_proj_weight",
        "v_proj_weight",
        "out_proj",
    }
    add_noise(attached.parameters())
    attached.save(tmp_path)
    assert "peft_type" not in json.loads((tmp_path / "adapter_config.json").read_text())
    with torch.no_grad():
        expected = ATTENTION.output(base)
        again = adapter.load(ATTENTION.build(torch.float32), tmp_path)
        assert torch.equal(ATTENTION.output(again.model), expected)
