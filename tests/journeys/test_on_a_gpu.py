"""What runs on the CPU runs on a GPU: nothing of a pass is left on another device, and what is computed is the same."""

import pytest
import torch

import lorica
from lorica import adapter
from lorica.methods import DoRA, Full, LoRA, Prefix, VeRA
from software_gpu import OnGPU, software_gpu
from tiny_bases import LLAMA

ROWS = [{"prompt": f"what is {number} ", "completion": f"it is {3 * number}"} for number in range(12)]
CLOSE = 1e-5
"""float32: the same ops on the CPU, but for what has a kernel of its own there."""
METHODS = {
    "lora": (LoRA(r=4, dropout=0.2, bias="lora_only"), {}),
    "checkpointed": (LoRA(r=4), {"gradient_checkpointing": True}),
    "tokens": (LoRA(r=4, trainable_token_indices=(5, 6)), {"optimizer": "adafactor"}),
    "dora": (DoRA(r=4), {}),
    "vera": (VeRA(r=8), {}),
    "prefix": (Prefix(length=4), {}),
    "full": (Full(), {}),
}


@pytest.fixture
def gpu(monkeypatch):
    with software_gpu(monkeypatch) as device:
        yield device


def test_the_gpu_refuses_what_cuda_does(gpu):
    here, there = torch.ones(3), torch.ones(3, device=gpu)
    assert isinstance(there, OnGPU)
    assert (there * 2).to("cpu").tolist() == [2, 2, 2]
    with pytest.raises(RuntimeError, match="same device"):
        here + there
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()


def trained(device, method, options):
    model = lorica.load_base("embedded", device=device, dtype="float32")
    attached = lorica.attach(model, method)
    fitted = lorica.fit(attached, ROWS, eval=ROWS[:4], steps=2, rows_per_step=6, learning_rate=1e-3, **options)
    said = lorica.generate(attached, "what is 4 ", max_tokens=4).text
    return [line["loss"] for line in fitted.history if "loss" in line], fitted.eval["eval_loss"], said


def test_an_adapter_in_memory_goes_from_a_gpu_into_a_bank_there(gpu):
    """Tensors that it brings beside its own are read against the base's, wherever they lie."""
    attached = adapter.attach(LLAMA.build(torch.float32).to(gpu), LoRA(r=2, target_modules=["q_proj"]))
    with torch.no_grad():
        for parameter in attached.parameters():
            parameter.fill_(0.1)
    file = attached.file()
    own = attached.model.get_parameter("model.embed_tokens.weight").detach()
    file.tensors["base_model.model.model.embed_tokens.weight"] = own  # as PEFT does where tokens were added
    bank = adapter.Bank(LLAMA.build(torch.float32).to(gpu))
    bank.add("a", file)
    tokens = torch.arange(6, device=gpu).view(2, 3)
    with torch.no_grad(), bank.use(["a", None]):
        routed = bank.model(tokens).logits.to("cpu")
    with torch.no_grad():
        alone, bare = attached(tokens).logits.to("cpu"), bank.model(tokens).logits.to("cpu")
    assert torch.allclose(routed, torch.stack([alone[0], bare[1]]), rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("name", METHODS)
def test_a_run_learns_and_answers_as_it_does_on_a_cpu(name, monkeypatch):
    expected = trained("cpu", *METHODS[name])
    with software_gpu(monkeypatch) as gpu:
        found = trained(gpu, *METHODS[name])
    assert found[0] == pytest.approx(expected[0], rel=CLOSE)
    assert found[1] == pytest.approx(expected[1], rel=CLOSE)
    assert found[2] == expected[2]
