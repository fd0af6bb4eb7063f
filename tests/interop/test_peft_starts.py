"""Starts that PEFT makes by changing the base, and what it reads of ours: a plain LoRA of twice the rank."""

import json
import warnings

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft_bases import BASES, add_noise, distance, only_their_own_warnings, rounding
from safetensors.torch import load_file
from test_peft_both_ways import save_with_peft, theirs

import lorica
from campaign.tiny_run import dataset
from lorica.errors import AdapterError, RecipeError
from lorica.methods import LoRA
from lorica.methods.starts import EVA, LoRAGA, OLoRA, PiSSA

LLAMA, GPT2 = (next(base for base in BASES if base.name == name) for name in ("llama", "gpt2"))
TENSORS = "adapter_model.safetensors"
PATTERNS = {"rslora": True, "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 5.0}}


@pytest.fixture(params=[LLAMA, GPT2], ids=lambda base: base.name)
def base(request):
    return request.param


@pytest.fixture
def folder(base, tmp_path):
    return base.saved(tmp_path / "base")


OPTIONS = {"pissa": {"init": "pissa"}, "olora-rslora": {"init": "olora", **PATTERNS}, "eva": {"init": "eva"}}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_what_starts_otherwise_is_saved_as_a_lora_that_peft_reads(base, folder, tmp_path, options):
    """One that was subtracted has twice the rank, with rsLoRA and patterns as well, for which PEFT cannot convert its
    own; and each layer of EVA's has the rank that it was dealt."""
    if base is GPT2:
        options = {key: value for key, value in options.items() if not key.endswith("_pattern")}
    inputs, ours = base.inputs(), lorica.load_base(folder)
    method = LoRA(r=3, alpha=8, target_modules="attention", **options)
    statistics = lorica.statistics(ours, method, dataset(12))
    with torch.no_grad():
        before = ours(**inputs).logits
        attached = lorica.attach(ours, method, statistics=statistics)
        assert torch.equal(attached(**inputs).logits, before)
        add_noise(attached.parameters())
        expected = attached(**inputs).logits
    attached.save(tmp_path / "adapter")
    assert distance(expected, before) > 0.1
    with only_their_own_warnings(), torch.no_grad():
        model = PeftModel.from_pretrained(theirs(base, folder), tmp_path / "adapter").eval()
        assert distance(model(**inputs).logits, expected) < rounding(ours)
        config = PeftConfig.from_pretrained(tmp_path / "adapter")
        config.inference_mode = False
        blank = get_peft_model(theirs(base, folder), config)
        told = set_peft_model_state_dict(blank, load_file(tmp_path / "adapter" / TENSORS))
    assert (config.r, config.init_lora_weights) == (3 if "eva" in options.values() else 6, True)
    assert len(set(config.rank_pattern.values())) > 1 or "eva" not in options.values()
    assert told.unexpected_keys == []
    assert {name for name, p in blank.named_parameters() if p.requires_grad}.isdisjoint(told.missing_keys)


def test_training_goes_on_from_such_a_file_as_from_any_lora(tmp_path):
    """Of twice the rank: both halves are trained, and the next file has the same size."""
    ours = lorica.load_base(LLAMA.saved(tmp_path / "base"))
    attached = lorica.attach(ours, LoRA(r=3, alpha=8, target_modules="minimal", init="pissa"))
    add_noise(attached.parameters())
    count = attached.trainable_parameters
    attached.save(tmp_path / "first")
    attached.detach()
    again = lorica.load(ours, tmp_path / "first")
    assert again.trainable_parameters == 2 * count
    (method,) = again.plan.methods
    assert (method.r, method.alpha, method.init.kind) == (6, 16, "kaiming")
    add_noise(again.parameters())
    again.save(tmp_path / "second")
    first, second = (json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("first", "second"))
    assert first == second


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_both_start_from_the_same_product(tmp_path, init):
    """Signs of single directions apart."""
    folder = LLAMA.saved(tmp_path / "base")
    config = LoraConfig(r=3, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=init)
    with only_their_own_warnings():
        model = get_peft_model(theirs(LLAMA, folder), config)
    attached = lorica.attach(lorica.load_base(folder), config)
    for planned in attached.plan.edits:
        module = attached.modules[planned.key]
        peer = model.base_model.model.get_submodule(planned.site.name)
        expected = peer.lora_B["default"].weight @ peer.lora_A["default"].weight
        assert distance((module.B @ module.A).detach(), expected.detach()) < 1e-5


def test_what_peft_converts_of_its_own_loads_here(tmp_path):
    folder, inputs = LLAMA.saved(tmp_path / "base"), LLAMA.inputs()
    config = LoraConfig(r=3, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights="pissa")
    with only_their_own_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", message="PiSSA changes the base weights")
        model = get_peft_model(theirs(LLAMA, folder), config).eval()
        model.peft_config["default"].init_lora_weights = True
        save_with_peft(model, tmp_path / "start")
        model.peft_config["default"].init_lora_weights = "pissa"
        add_noise([p for p in model.parameters() if p.requires_grad])
        expected = model(**inputs).logits
        model.save_pretrained(tmp_path / "raw")
        model.save_pretrained(tmp_path / "file", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    ours = lorica.load_base(folder)
    with pytest.raises(AdapterError, match="changed the base itself"):
        lorica.load(ours, tmp_path / "raw")
    with torch.no_grad():
        found = lorica.load(ours, tmp_path / "file")(**inputs).logits
    assert distance(found, expected) < rounding(ours)


@pytest.mark.parametrize(
    ("fields", "init"),
    [
        ({"init_lora_weights": "pissa"}, PiSSA()),
        ({"init_lora_weights": "pissa_niter_16"}, PiSSA(niter=16)),
        ({"init_lora_weights": "olora"}, OLoRA()),
        (
            {"init_lora_weights": "eva", "eva_config": {"rho": 1.5, "tau": 0.9, "use_label_mask": False}},
            EVA(rho=1.5, tau=0.9),
        ),
        ({"init_lora_weights": "lora_ga", "lora_ga_config": {"stable_gamma": 4}}, LoRAGA(gamma=4)),
    ],
)
def test_a_config_of_peft_names_our_start(fields, init):
    assert LoRA.from_peft({"target_modules": ["q_proj"], **fields}).init == init


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"init_lora_weights": "pissa_niter_x"}, "pissa_niter_x"),
        ({"init_lora_weights": "eva", "eva_config": {"rho": 0.5}}, "eva: rho: Input should be greater"),
        ({"init_lora_weights": "eva", "eva_config": {"whiten": True}}, "eva_config.whiten"),
        ({"init_lora_weights": "lora_ga", "lora_ga_config": {"direction": "ArBr"}}, "lora_ga_config.direction"),
    ],
)
def test_an_option_without_a_counterpart_is_refused_by_name(fields, words):
    with pytest.raises(RecipeError, match=words):
        LoRA.from_peft({"target_modules": ["q_proj"], **fields})
