"""DoRA between PEFT and Lorica, and LoRA-FA's files in PEFT: outputs, keys and configs."""

import json
import warnings
from dataclasses import replace
from typing import Any

import peft
import pytest
import torch
import transformers as hf
from peft_bases import BASES, Base, add_noise, distance, only_their_own_warnings, rounding
from safetensors.torch import load_file, save_file

from lorica import adapter
from lorica.errors import AdapterError, RecipeError
from lorica.methods import DoRA, LoRA, LoRAFA
from lorica.models import load_base

TENSORS = "adapter_model.safetensors"
NAMED = {base.name: base for base in BASES}


def with_dora(name: str, **changed: Any) -> Base:
    return replace(NAMED[name], adapter={**NAMED[name].adapter, "use_dora": True, **changed})


DORA = [
    with_dora("mistral", lora_dropout=0.1),  # rsLoRA, a head saved whole
    with_dora("qwen3"),  # an embedding
    with_dora("gpt2"),  # Conv1D, all biases
]


def theirs(base: Base, folder: Any) -> Any:
    kind = getattr(hf, json.loads((folder / "config.json").read_text())["architectures"][0])
    with only_their_own_warnings():
        return kind.from_pretrained(folder).eval()


@pytest.fixture(params=DORA, ids=lambda base: base.name)
def base(request: pytest.FixtureRequest) -> Base:
    return request.param


@pytest.fixture
def folder(base: Base, tmp_path):
    return base.saved(tmp_path / "base")


def noisy(parameters: Any) -> None:
    add_noise([parameter for parameter in parameters if parameter.requires_grad])


def test_what_peft_saves_loads_here_and_computes_the_same(base: Base, folder, tmp_path):
    inputs = base.inputs()
    with only_their_own_warnings(), torch.no_grad():
        model = peft.get_peft_model(theirs(base, folder), base.peft_config()).eval()
        noisy(model.parameters())
        expected = model(**inputs).logits
        warnings.filterwarnings("ignore", message="Setting `save_embedding_layers` to `True`")
        model.save_pretrained(tmp_path / "adapter")
        named = {key: value for key, value in model.state_dict().items() if ".lora_" in key}
    ours = load_base(folder)
    attached = adapter.load(ours, tmp_path / "adapter")
    assert isinstance(attached.plan.methods[0], DoRA)
    with torch.no_grad():
        assert distance(attached(**inputs).logits, expected) < rounding(ours)
        merged = attached.merge(probed=False)
        assert distance(merged(**inputs).logits, expected) < rounding(ours)
    names = DoRA.plain_keys({**named, **_others(tmp_path)})
    assert {names[key] for key in named} <= load_file(tmp_path / "adapter" / TENSORS).keys()
    assert any(key.endswith(".lora_magnitude_vector.default.weight") for key in named)


def _others(tmp_path) -> dict[str, Any]:
    held = load_file(tmp_path / "adapter" / TENSORS)
    return {key: value for key, value in held.items() if ".lora_" not in key}


def test_what_is_saved_here_loads_in_peft_with_no_key_missing_or_left_over(base: Base, folder, tmp_path):
    inputs = base.inputs()
    ours = load_base(folder)
    attached = adapter.attach(ours, base.peft_config())
    assert isinstance(attached.plan.methods[0], DoRA)
    noisy(attached.parameters())
    attached.save(tmp_path / "adapter")
    with only_their_own_warnings(), torch.no_grad():
        expected = attached(**inputs).logits
        model = peft.PeftModel.from_pretrained(theirs(base, folder), tmp_path / "adapter").eval()
        assert distance(model(**inputs).logits, expected) < rounding(ours)
        config = peft.PeftConfig.from_pretrained(tmp_path / "adapter")
        config.inference_mode = False
        blank = peft.get_peft_model(theirs(base, folder), config)
        told = peft.set_peft_model_state_dict(blank, load_file(tmp_path / "adapter" / TENSORS))
    assert config.use_dora  # type: ignore[attr-defined]
    assert told.unexpected_keys == []
    assert {name for name, p in blank.named_parameters() if p.requires_grad}.isdisjoint(told.missing_keys)


def test_gradients_with_dropout_off_are_pefts(tmp_path):
    """Both take the norm for a constant."""
    base = with_dora("mistral")
    folder = base.saved(tmp_path / "base")
    with only_their_own_warnings():
        model = peft.get_peft_model(theirs(base, folder), base.peft_config())
        noisy(model.parameters())
        model.save_pretrained(tmp_path / "adapter")
    model(**base.inputs()).logits.square().sum().backward()
    ours = adapter.load(load_base(folder), tmp_path / "adapter")
    ours(**base.inputs()).logits.square().sum().backward()
    names = DoRA.plain_keys([name for name, p in model.named_parameters() if p.requires_grad])
    expected = {names[name]: p.grad for name, p in model.named_parameters() if p.requires_grad}
    found = dict(ours.named_parameters())
    assert found.keys() == expected.keys()
    largest = max(float(grad.abs().max()) for grad in expected.values())
    for key, grad in expected.items():
        assert (found[key].grad - grad).abs().max() <= 10 * rounding(ours.model) * largest, key


def test_a_row_of_zeros_is_nan_in_peft_and_stays_as_it_was_here(tmp_path):
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 3)).eval()
    with torch.no_grad():
        base[0].weight[2] = 0  # type: ignore[union-attr]
    x = torch.randn(4, 6)
    before = base(x)
    config = peft.LoraConfig(r=2, lora_alpha=5, target_modules=["0"], use_dora=True)
    attached = adapter.attach(base, config)
    assert torch.equal(attached(x), before)
    attached.detach()
    with only_their_own_warnings():
        assert peft.get_peft_model(base, config)(x).isnan().any()


def test_lora_does_not_take_a_config_of_dora_for_its_own():
    with pytest.raises(RecipeError, match="use_dora: True has no counterpart here; write method: dora"):
        LoRA.from_peft({"use_dora": True})


@pytest.mark.parametrize("corrected", [False, True])
def test_peft_reads_lora_fa_as_lora(corrected: bool, tmp_path):
    base = NAMED["llama"]
    folder = base.saved(tmp_path / "base")
    ours = load_base(folder)
    attached = adapter.attach(ours, LoRAFA(r=3, alpha=7, corrected=corrected, rank_pattern={"q_proj": 2}))
    add_noise(attached.parameters())
    attached.save(tmp_path / "adapter")
    with only_their_own_warnings(), torch.no_grad():
        model = peft.PeftModel.from_pretrained(theirs(base, folder), tmp_path / "adapter").eval()
        expected = attached(**base.inputs()).logits
        assert distance(model(**base.inputs()).logits, expected) < rounding(ours)


def test_a_magnitude_that_is_missing_is_told(tmp_path):
    base = with_dora("llama")
    attached = adapter.attach(load_base(base.saved(tmp_path / "base")), base.peft_config())
    noisy(attached.parameters())
    attached.save(tmp_path / "adapter")
    (tmp_path / "adapter" / "lorica.json").unlink()
    held = load_file(tmp_path / "adapter" / TENSORS)
    key = next(key for key in held if key.endswith("lora_magnitude_vector"))
    save_file({name: value for name, value in held.items() if name != key}, tmp_path / "adapter" / TENSORS)
    with pytest.raises(AdapterError, match=f"{key}: missing from the file"):
        adapter.load(load_base(tmp_path / "base"), tmp_path / "adapter")
