"""Bases whose layers are fetched as they are used: trained, merged and given back as resident ones are."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

import lorica
from lorica.errors import ModelError, TargetError
from lorica.models import fetched_layers, hosted, quantisation_of, sites
from lorica.models.loading import load_base

SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
IDS = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("bases")
    LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=False)).bfloat16().save_pretrained(place / "llama")
    Qwen2ForCausalLM(Qwen2Config(**SHAPE)).save_pretrained(place / "qwen")
    return place


def gradients(model: nn.Module, method: Any, recomputed: bool) -> dict[str, Tensor]:
    """Logits and gradients of an adapter with noise in every tensor."""
    attached = lorica.attach(model, method, seed=1)
    with torch.no_grad():
        for number, (_, parameter) in enumerate(attached.named_parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.add_(noise * 0.1)
    if recomputed:
        attached.checkpoint()
    out = model(input_ids=IDS, labels=IDS)
    out.loss.backward()
    found = {name: parameter.grad for name, parameter in attached.named_parameters()}
    attached.detach()
    return {"logits": out.logits.detach(), **found}  # type: ignore[dict-item]


@pytest.mark.parametrize("options", [{}, {"dtype": "float32"}, {"quantize": "nf4", "double_quant": True}], ids=str)
@pytest.mark.parametrize("name", ["llama", "qwen"])
def test_a_base_computes_and_teaches_the_same_bits_wherever_its_layers_are(
    folder: Path, name: str, options: dict[str, Any]
) -> None:
    resident, away = load_base(folder / name, **options), load_base(folder / name, host_layers=2, **options)
    assert (fetched_layers(resident), fetched_layers(away)) == (0, 2)
    assert sites(away) == sites(resident)
    assert quantisation_of(away) == quantisation_of(resident)
    before = dict(away.named_modules())
    for method in (lorica.LoRA(r=4, alpha=12), lorica.DoRA(r=4, alpha=12)):
        for recomputed in (False, True):
            here, there = (gradients(model, method, recomputed) for model in (resident, away))
            assert here.keys() == there.keys()
            assert all(torch.equal(here[key], there[key]) for key in here), (method, recomputed)
    after = dict(away.named_modules())
    assert before.keys() == after.keys()
    assert all(before[key] is after[key] for key in before)
    held = resident.state_dict()
    assert all(torch.equal(tensor, held[name]) for name, tensor in away.state_dict().items())


def test_merging_in_memory_gives_the_weights_of_a_resident_base(folder: Path) -> None:
    merged = []
    for layers in (0, 3):
        model = load_base(folder / "qwen", host_layers=layers)
        attached = lorica.attach(model, lorica.LoRA(r=4, alpha=12, target_modules=["q_proj", "down_proj"]), seed=1)
        with torch.no_grad():
            for number, (_, parameter) in enumerate(attached.named_parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.1)
        merged.append(attached.merge().state_dict())
    assert merged[0].keys() == merged[1].keys()
    assert all(torch.equal(merged[0][name], merged[1][name]) for name in merged[0])


def test_a_cast_of_the_model_changes_what_fetched_layers_compute_in(folder: Path) -> None:
    resident, away = load_base(folder / "llama"), load_base(folder / "llama", host_layers=3)
    with torch.no_grad():
        outputs = [model.float()(input_ids=IDS).logits for model in (resident, away)]
    assert outputs[0].dtype == torch.float32
    assert torch.equal(*outputs)
    assert sites(away) == sites(resident)


def test_what_is_fetched_cannot_be_trained_itself(folder: Path) -> None:
    model = load_base(folder / "qwen", host_layers=1)
    with pytest.raises(TargetError, match=r"fetched as it is used.*host_layers"):
        lorica.attach(model, lorica.Full())
    lorica.attach(model, lorica.BitFit()).detach()


def test_a_base_that_runs_on_transformers_cannot_fetch(tmp_path: Path) -> None:
    few = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForMaskedLM(BertConfig(vocab_size=32, **few)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"host_layers: .* runs on transformers"):
        load_base(tmp_path, host_layers=1)


def test_layers_are_spread_evenly() -> None:
    assert hosted(8, 0) == ()
    assert hosted(8, 3) == (0, 2, 5)
    assert hosted(8, 8) == hosted(8, 99) == tuple(range(8))


MEASURED = """
import sys, torch
from lorica.models.loading import load_base
import lorica
from lorica.models import loading

loading.WHOLE_AT_MOST = 0  # the digest of a small base reads all of it

def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024

ids = torch.zeros(1, 16, dtype=torch.long)
def step(folder, layers):
    model = load_base(folder, host_layers=layers)
    attached = lorica.attach(model, lorica.LoRA(r=4, target_modules="minimal"))
    attached.checkpoint()
    model(input_ids=ids, labels=ids).loss.backward()
    grads = [p.grad.double().sum().item() for p in attached.parameters()]
    attached.detach()
    return grads

step(sys.argv[1], 0)
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
away = step(sys.argv[2], 4)
grown = status("VmHWM") - before
here = step(sys.argv[2], 0)
resident = status("VmHWM") - before
assert away == here, "other gradients"
print(grown, resident)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak resident memory is read from /proc")
def test_fetched_layers_are_not_in_memory(tmp_path: Path, folder: Path) -> None:
    """Four layers of 25.7 MB in bfloat16: resident they are all in memory, fetched the largest of their weights is."""
    shape = {**SHAPE, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**{**shape, "num_attention_heads": 8, "num_key_value_heads": 8}))
    model = model.to_empty(device="cpu").bfloat16()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.03, 0.03, generator=generator)
    model.save_pretrained(tmp_path)
    layers = sum(p.nbytes for name, p in model.named_parameters() if ".layers." in name and p.dim() == 2)
    largest = 1024 * 2816 * 2
    del model
    asked = [sys.executable, "-c", MEASURED, str(folder / "llama"), str(tmp_path)]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    grown, resident = map(int, done.stdout.split()[-2:])
    assert resident >= layers
    assert grown <= 6 * largest, "the workspace, and what is made of a weight while a product reads it"
    assert grown < layers / 2
