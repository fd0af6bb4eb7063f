"""Adapters made of products (gains, Hadamard, Kronecker, shared factors) travel both ways between PEFT and here.

Noise in every trained tensor, alpha other than r, by outputs.
"""

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import peft
import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft_bases import BASES, Base, add_noise, distance, only_their_own_warnings, rounding
from safetensors.torch import load_file
from test_peft_both_ways import theirs

from lorica import adapter
from lorica.models import load_base

TENSORS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Case:
    """A method, and PEFT's config of it on a base."""

    name: str
    base: Base
    config: Callable[[], PeftConfig]

    def __repr__(self) -> str:
        return f"{self.name}-{self.base.name}"


def _case(name: str, base: str, kind: Callable[..., PeftConfig], **fields) -> Case:
    def config() -> PeftConfig:
        with quietly():
            return kind(**deepcopy(fields))

    return Case(name, next(b for b in BASES if b.name == base), config)


CASES = (
    _case("ia3", "llama", peft.IA3Config, task_type="CAUSAL_LM"),
    _case("ia3", "gpt2", peft.IA3Config, task_type="CAUSAL_LM", fan_in_fan_out=True),
    _case(
        "ia3",
        "bert",
        peft.IA3Config,
        task_type="SEQ_CLS",
        target_modules=["key", "value", "intermediate.dense", "layer.1.output.dense"],
        feedforward_modules=["layer.1.output.dense"],
        modules_to_save=["classifier"],
    ),
    _case("ia3", "t5", peft.IA3Config, target_modules=["k", "v", "wo"], feedforward_modules=["wo"]),
    _case("hira", "llama", peft.HiraConfig, r=3, target_modules="all-linear"),
    _case("hira", "gpt2", peft.HiraConfig, r=2, target_modules=["c_attn", "mlp.c_proj"], fan_in_fan_out=True),
    _case("vera", "llama", peft.VeraConfig, r=5, target_modules=["q_proj", "v_proj", "down_proj"], d_initial=0.3),
    _case(
        "vera",
        "gpt2",
        peft.VeraConfig,
        r=6,
        target_modules=["c_attn", "c_fc"],
        fan_in_fan_out=True,
        projection_prng_key=11,
        save_projection=False,
    ),
    _case(
        "loha",
        "llama",
        peft.LoHaConfig,
        r=3,
        alpha=40,
        target_modules="all-linear",
        rank_pattern={"q_proj": 2},
        alpha_pattern={"layers.1.self_attn.q_proj": 50},
    ),
    _case(
        "loha",
        "bert",
        peft.LoHaConfig,
        task_type="SEQ_CLS",
        r=2,
        alpha=30,
        target_modules=["query", "dense"],
        modules_to_save=["classifier"],
    ),
    _case("lokr", "llama", peft.LoKrConfig, r=2, alpha=10, target_modules="all-linear"),
    _case(
        "lokr",
        "t5",
        peft.LoKrConfig,
        r=1,
        alpha=6,
        target_modules=["q", "v", "wo"],
        decompose_both=True,
        decompose_factor=5,
        rank_pattern={"v": 2},
    ),
    _case(
        "lokr",
        "bert",
        peft.LoKrConfig,
        task_type="SEQ_CLS",
        r=100,
        alpha=300,
        target_modules=["value"],
        decompose_factor=16,
    ),
)


@pytest.fixture(params=CASES, ids=repr)
def case(request):
    return request.param


@pytest.fixture
def folder(case, tmp_path):
    return case.base.saved(tmp_path / "base")


@contextmanager
def quietly() -> Iterator[None]:
    """Without PEFT's advice about what the config leaves out, which no test is about."""
    with only_their_own_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        warnings.filterwarnings("ignore", message="Could not find a config file")
        warnings.filterwarnings("ignore", message="Specified to not (save|load) vera_A and vera_B")
        yield


def test_what_peft_saves_loads_here_and_computes_the_same(case: Case, folder: Path, tmp_path: Path):
    inputs = case.base.inputs()
    with quietly(), torch.no_grad():
        before = theirs(case.base, folder)(**inputs).logits
        model = get_peft_model(theirs(case.base, folder), case.config()).eval()
        add_noise([p for p in model.parameters() if p.requires_grad])
        expected = model(**inputs).logits
        model.save_pretrained(tmp_path / "adapter")
    assert distance(expected, before) > 0.05
    ours = load_base(folder)
    attached = adapter.load(ours, tmp_path / "adapter")
    assert attached.plan.methods[0].kind == case.name
    with torch.no_grad():
        assert distance(attached(**inputs).logits, expected) < rounding(ours)
    attached.save(tmp_path / "again")
    stored, again = (load_file(tmp_path / name / TENSORS) for name in ("adapter", "again"))
    assert stored.keys() == again.keys()
    assert all(torch.equal(stored[key], again[key]) for key in stored), "a round trip changes a bit"


def test_what_is_saved_here_loads_in_peft_with_no_key_missing_or_left_over(case: Case, folder: Path, tmp_path: Path):
    inputs = case.base.inputs()
    ours = load_base(folder)
    attached = adapter.attach(ours, case.config())
    add_noise(attached.parameters())
    with torch.no_grad():
        expected = attached(**inputs).logits
    attached.save(tmp_path / "adapter")
    with quietly(), torch.no_grad():
        model = PeftModel.from_pretrained(theirs(case.base, folder), tmp_path / "adapter").eval()
        assert distance(model(**inputs).logits, expected) < rounding(ours)
        config = PeftConfig.from_pretrained(tmp_path / "adapter")
        config.inference_mode = False
        blank = get_peft_model(theirs(case.base, folder), config)
        told = set_peft_model_state_dict(blank, load_file(tmp_path / "adapter" / TENSORS))
    assert told.unexpected_keys == []
    assert {name for name, p in blank.named_parameters() if p.requires_grad}.isdisjoint(told.missing_keys)


@pytest.mark.parametrize("name", ["ia3-bert", "ia3-gpt2", "hira-gpt2", "vera-gpt2", "loha-bert", "lokr-t5"])
def test_merging_in_peft_and_here_gives_one_model(name: str, tmp_path: Path):
    case = next(case for case in CASES if repr(case) == name)
    folder = case.base.saved(tmp_path / "base")
    inputs = case.base.inputs()
    ours = load_base(folder)
    attached = adapter.attach(ours, case.config())
    add_noise(attached.parameters())
    attached.save(tmp_path / "adapter")
    with quietly(), torch.no_grad():
        merged = PeftModel.from_pretrained(theirs(case.base, folder), tmp_path / "adapter").merge_and_unload().eval()
        assert distance(attached.merge()(**inputs).logits, merged(**inputs).logits) < rounding(ours)


def test_the_shards_of_a_checkpoint_are_merged_with_their_biases(tmp_path: Path):
    """Of BERT, whose layers have biases: what (IA)^3 makes of them is in the merged checkpoint."""
    case = next(case for case in CASES if repr(case) == "ia3-bert")
    folder = case.base.saved(tmp_path / "base")
    attached = adapter.attach(load_base(folder), case.config())
    add_noise(attached.parameters())
    attached.save(tmp_path / "adapter")
    adapter.merge_checkpoint(folder, tmp_path / "adapter", tmp_path / "merged")
    merged, base = load_file(tmp_path / "merged/model.safetensors"), load_file(folder / "model.safetensors")
    gains = load_file(tmp_path / "adapter" / TENSORS)
    name = "bert.encoder.layer.0.attention.self.value"
    expected = base[f"{name}.bias"] * gains[f"base_model.model.{name}.ia3_l"][:, 0]
    assert torch.equal(merged[f"{name}.bias"], expected)
    down = "bert.encoder.layer.1.output.dense.bias"
    assert torch.equal(merged[down], base[down])
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["peft_type"] == "IA3"
