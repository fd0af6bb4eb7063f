"""AdaLoRA travels between PEFT and Lorica in both directions, whole and with its ranks cut, and where PEFT differs."""

import json
import warnings

import peft
import pytest
import torch
import transformers as hf
from peft import AdaLoraConfig, PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft_bases import BASES, add_noise, distance, only_their_own_warnings, rounding
from safetensors.torch import load_file

from lorica import adapter
from lorica.errors import AdapterError, RecipeError
from lorica.methods import AdaLoRA
from lorica.models import load_base

TENSORS = "adapter_model.safetensors"
NAMES = ("llama", "gpt2", "bert")
TARGETS = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn"], "bert": ["query", "value"]}


@pytest.fixture(params=NAMES)
def base(request):
    return next(base for base in BASES if base.name == request.param)


@pytest.fixture
def folder(base, tmp_path):
    return base.saved(tmp_path / "base")


def theirs(folder):
    kind = getattr(hf, json.loads((folder / "config.json").read_text())["architectures"][0])
    with only_their_own_warnings():
        return kind.from_pretrained(folder).eval()


def config(base, **more) -> AdaLoraConfig:
    heads = {"modules_to_save": ["classifier"]} if base.name == "bert" else {}
    return AdaLoraConfig(
        **{
            "init_r": 5,
            "target_r": 3,
            "lora_alpha": 7,
            "target_modules": TARGETS[base.name],
            "total_step": 100,
            "tinit": 10,
            "tfinal": 40,
            "fan_in_fan_out": base.name == "gpt2",
            **heads,
            **more,
        }
    )


def with_peft(base, folder, **more):
    with only_their_own_warnings():
        model = get_peft_model(theirs(folder), config(base, **more)).eval()
    add_noise([p for p in model.parameters() if p.requires_grad])
    return model


def allocated(base, folder):
    """PEFT's own choice of ranks, after which one site has none left."""
    model = with_peft(base, folder)
    with only_their_own_warnings():
        tuner = model.base_model
        for step in range(2, 61):
            for place, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
                parameter.grad = torch.full_like(parameter, 0.0 if place < 3 else 1.0 + place + step % 2)
            tuner.update_and_allocate(step)
    return model


def saved(model, folder):
    with only_their_own_warnings():
        warnings.filterwarnings("ignore", message=".*have invalid shape")
        model.save_pretrained(folder)
    return folder


def logits(model, base):
    with only_their_own_warnings(), torch.no_grad():
        return model(**base.inputs()).logits


def test_what_peft_saves_before_it_chose_ranks_loads_here_and_computes_the_same(base, folder, tmp_path):
    model = with_peft(base, folder)
    expected, before = logits(model, base), logits(theirs(folder), base)
    assert distance(expected, before) > 0.01
    saved(model, tmp_path / "adapter")
    ours = load_base(folder)
    with pytest.raises(AdapterError, match=r"not finished: adalora: .* singular values are left"):
        adapter.load(ours, tmp_path / "adapter")
    attached = adapter.load(ours, tmp_path / "adapter", untrained=True)
    assert distance(logits(attached, base), expected) < rounding(ours)


def test_what_peft_cut_loads_here_and_goes_back_cut(base, folder, tmp_path):
    model = allocated(base, folder)
    expected = logits(model, base)
    saved(model, tmp_path / "theirs")
    stored = load_file(tmp_path / "theirs" / TENSORS)
    ranks = {len(tensor) for key, tensor in stored.items() if key.endswith(".lora_E")}
    assert len(ranks) > 1
    assert min(ranks) == 0
    ours = load_base(folder)
    attached = adapter.load(ours, tmp_path / "theirs")
    assert distance(logits(attached, base), expected) < rounding(ours)
    attached.save(tmp_path / "ours")
    again = load_file(tmp_path / "ours" / TENSORS)
    assert all(torch.equal(again[key], stored[key]) for key in again)
    assert distance(logits(in_peft(folder, tmp_path / "ours"), base), expected) < rounding(ours)
    assert "lora_E" in (tmp_path / "ours" / "adapter_config.json").read_text()
    assert 0 in {site.kept for site in adapter.inspect(tmp_path / "ours").sites}


def in_peft(folder, place):
    with only_their_own_warnings():
        # PEFT looks for LoRA's rank_pattern in AdaLoRA's, of its own files too
        warnings.filterwarnings("ignore", message="The following rank_pattern keys did not match")
        return PeftModel.from_pretrained(theirs(folder), place).eval()


def test_what_is_saved_here_loads_in_peft_with_no_key_missing_or_left_over(base, folder, tmp_path):
    ours = load_base(folder)
    attached = adapter.attach(ours, AdaLoRA.from_peft(config(base)))
    add_noise(attached.parameters())
    modules = [module for (_, place), module in attached.modules.items() if place == "around"]
    for place, module in enumerate(modules):
        module.L.data[place % 2 : place % 2 + 3] = 0  # 2 of 5 are left
    expected = logits(attached, base)
    attached.save(tmp_path / "adapter")
    assert distance(logits(in_peft(folder, tmp_path / "adapter"), base), expected) < rounding(ours)
    with only_their_own_warnings():
        written = PeftConfig.from_pretrained(tmp_path / "adapter")
        written.inference_mode = False
        blank = get_peft_model(theirs(folder), written)
        told = set_peft_model_state_dict(blank, load_file(tmp_path / "adapter" / TENSORS))
    assert told.unexpected_keys == []
    trained = {name for name, p in blank.named_parameters() if p.requires_grad}
    assert trained.isdisjoint(told.missing_keys)
    for name in ("init_r", "target_r", "lora_alpha", "lora_dropout", "deltaT", "beta1", "orth_reg_weight"):
        assert getattr(written, name) == getattr(config(base), name), name
    assert (written.tinit / written.total_step, written.tfinal / written.total_step) == (0.1, 0.4)


def test_the_phases_of_a_config_become_shares_of_any_run():
    given = AdaLoraConfig(target_modules=["q_proj"], total_step=200, tinit=30, tfinal=50, target_r=2, init_r=6)
    method = AdaLoRA.from_peft(given)
    assert (method.r, method.start, method.tinit, method.tfinal, method.alpha) == (2, 6, 0.15, 0.25, 8)
    schedule = method.life({}).settings.schedule(200, 12, 2)  # type: ignore[attr-defined, union-attr]
    assert (schedule.first, schedule.last, schedule.end) == (30, 150, 4)


def test_what_has_no_counterpart_is_refused_by_name():
    fields = {
        "bias": "all",
        "init_lora_weights": False,
        "use_rslora": True,
        "alpha_pattern": {"q_proj": 3},
        "rank_pattern": {"q_proj": 3, "layers.0.q_proj.lora_E": [1, 2]},
    }
    with pytest.raises(RecipeError) as told:
        AdaLoRA.from_peft({**fields, "target_modules": ["q_proj"], "total_step": 10})
    assert {line.partition(":")[0] for line in str(told.value).splitlines()} == set(fields)


class TestTraps:
    """Where PEFT and the mathematics disagree; what stands here is the mathematics."""

    @pytest.fixture
    def layers(self, tmp_path):
        base = next(base for base in BASES if base.name == "llama")
        return base, base.saved(tmp_path / "base")

    def test_peft_divides_by_the_rank_and_a_hundred_thousandth(self, layers, tmp_path):
        """At most 1e-5 of the update, which no tolerance of float32 outputs shows."""
        base, folder = layers
        model = with_peft(base, folder).double()
        layer = model.base_model.model.model.layers[0].self_attn.q_proj
        P, L, Q = (getattr(layer, name)["default"].detach() for name in ("lora_B", "lora_E", "lora_A"))
        exact = 7 / 5 * (P * L.T) @ Q
        found = layer.get_delta_weight("default").detach()
        torch.testing.assert_close(found, exact * 5 / (5 + 1e-5), rtol=1e-7, atol=0)
        saved(model.float(), tmp_path / "adapter")
        attached = adapter.load(load_base(folder, dtype="float32"), tmp_path / "adapter", untrained=True)
        module = attached.modules["model.layers.0.self_attn.q_proj", "around"].double()
        merged = module.merged(torch.zeros_like(exact)).detach()  # type: ignore[operator]
        torch.testing.assert_close(merged, exact, rtol=1e-12, atol=1e-14)
        assert not torch.allclose(merged, found, rtol=1e-7, atol=0)

    def test_peft_fails_where_the_budget_is_the_start(self, layers):
        base, folder = layers
        model = with_peft(base, folder, init_r=3)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
        with pytest.raises(RuntimeError, match=r"selected number k out of range|out of range"):
            model.base_model.update_and_allocate(30)

    def test_peft_masks_all_of_what_is_equal(self, layers):
        base, folder = layers
        model = with_peft(base, folder)
        for step in (11, 12):
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
            model.base_model.update_and_allocate(step)
        values = [p for name, p in model.named_parameters() if "lora_E" in name]
        assert not any(bool(p.any()) for p in values), "PEFT keeps none of 20, though its budget is 19"

    def test_the_scores_of_peft_are_in_no_checkpoint(self, layers, tmp_path):
        base, folder = layers
        model = allocated(base, folder)
        held = load_file(saved(model, tmp_path / "adapter") / TENSORS)
        assert not [key for key in held if not key.endswith((".lora_A", ".lora_B", ".lora_E"))]
        assert peft.__version__
