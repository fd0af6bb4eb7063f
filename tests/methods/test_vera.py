"""VeRA has one frozen pair: one tensor for the model, one entry in the file, the numbers that PEFT draws."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.vera.model import _kaiming_init
from safetensors.torch import load_file
from torch import nn

from lorica import adapter
from lorica.methods import DoRA, LoRA, VeRA
from lorica.methods.contract import Start
from lorica.methods.vera import Pair
from lorica.site import Site
from tiny_bases import GPT2, LLAMA, stir

LLAMA_2_7B = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]


def sites(layers: int, shapes: list[tuple[int, int]]) -> tuple[Site, ...]:
    return tuple(
        Site(name=f"layers.{layer}.{index}", kind="linear", shape=shape)
        for layer in range(layers)
        for index, shape in enumerate(shapes)
    )


@pytest.mark.parametrize(
    ("layers", "shapes", "count"),
    [(12, [(768, 768)] * 2, 43_008), (32, LLAMA_2_7B, 1_589_248)],
    ids=["RoBERTa-base q,v", "Llama-2-7B, all linears"],
)
def test_the_trained_parameters_are_the_papers(layers: int, shapes: list[tuple[int, int]], count: int):
    """Table 2 and section 4.3 of the paper, r = 1024: each layer has d_out + r."""
    plan = adapter.plan(sites(layers, shapes), VeRA(r=1024))
    assert plan.trainable_parameters == count
    assert plan.frozen_parameters == 1024 * (max(s[0] for s in shapes) + max(s[1] for s in shapes))


def test_the_pair_is_one_tensor_for_the_model_wherever_the_model_goes():
    plan = adapter.plan(GPT2.build(), VeRA(r=5))
    first, second = (adapter.attach(GPT2.build(torch.float32), plan) for _ in range(2))
    for attached in (first, second):
        pairs = {id(module.pair) for module in attached.modules.values()}
        assert len(pairs) == 1, "the sites hold pairs of their own"
        attached.model.to(torch.float64)
        storages = {module.pair.A.data_ptr() for module in attached.modules.values()}
        assert len(storages) == 1, "moving the model made copies of the pair"
    held = [next(iter(attached.modules.values())).pair for attached in (first, second)]
    assert held[0] is not held[1], "two models share what only one of them may load into"


def test_two_veras_of_one_seed_have_a_pair_each_and_the_plan_counts_both(tmp_path: Path):
    """As one by one: an optimiser, a file and a plan know them as two methods."""
    both = [VeRA(r=5, target_modules=("q_proj",)), VeRA(r=5, target_modules=("o_proj",))]
    attached = adapter.attach(LLAMA.build(torch.float32), both)
    stir(attached.named_parameters())
    pairs = {id(module.pair) for module in attached.modules.values()}
    assert len(pairs) == 2, "what one loads or moves is the other's too"
    assert attached.plan.frozen_parameters == sum(adapter.plan(LLAMA.build(), one).frozen_parameters for one in both)
    attached.save(tmp_path / "a")
    with torch.no_grad():
        again = adapter.load(LLAMA.build(torch.float32), tmp_path / "a")
        assert torch.equal(LLAMA.output(again.model), LLAMA.output(attached.model))


@pytest.mark.parametrize("method", [VeRA(r=9), LoRA(r=3, init="pissa"), DoRA(r=3)], ids=lambda method: method.kind)
def test_what_a_file_does_not_hold_is_planned_for_as_well(method: Any):
    """The pair drawn again, PiSSA's start, DoRA's lengths of rows: every number that the modules hold, once."""
    unsaved = method.model_copy(update={"save_projection": False}) if isinstance(method, VeRA) else method
    attached = adapter.attach(LLAMA.build(torch.float32), unsaved)
    held = {id(t): t.numel() for m in attached.modules.values() for t in (*m.parameters(), *m.buffers())}
    assert attached.plan.trainable_parameters + attached.plan.frozen_parameters == sum(held.values())
    assert adapter.plan(LLAMA.build(), method).frozen_parameters == attached.plan.frozen_parameters


def test_the_pair_is_drawn_as_peft_draws_it():
    start = Start(torch.Generator(), torch.device("cpu"), torch.float32)
    pair = Pair(VeRA(r=5, seed=17), (40, 96), start)
    generator = torch.Generator().manual_seed(17)
    assert torch.equal(pair.A, _kaiming_init((5, 96), generator))
    assert torch.equal(pair.B, _kaiming_init((40, 5), generator))


@pytest.mark.parametrize("saved", [True, False])
def test_the_pair_is_in_the_file_once_or_drawn_again_from_its_seed(saved: bool, tmp_path: Path):
    model = LLAMA.build(torch.float32)
    attached = adapter.attach(model, VeRA(r=9, seed=4, save_projection=saved), seed=1)
    stir(attached.named_parameters())
    attached.save(tmp_path / "adapter")
    stored = load_file(tmp_path / "adapter/adapter_model.safetensors")
    frozen = {key: tuple(tensor.shape) for key, tensor in stored.items() if "lambda" not in key}
    assert frozen == ({"base_model.vera_A": (9, 40), "base_model.vera_B": (40, 9)} if saved else {})
    again = adapter.load(LLAMA.build(torch.float32), tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(LLAMA.output(again.model), LLAMA.output(model))
    inspection = adapter.inspect(tmp_path / "adapter")
    assert inspection.trained_parameters == attached.trainable_parameters


def test_the_gradient_of_d_is_zero_at_the_start_and_that_of_b_is_not():
    site = Site(name="q", kind="linear", shape=(6, 8))
    base = nn.Linear(8, 6).double().requires_grad_(False)
    module = VeRA(r=3).around(site)(Start(torch.Generator(), torch.device("cpu"), torch.float64))
    flow = type("Evaluation", (), {"noise": None})()
    module(torch.randn(2, 8, dtype=torch.float64), base, flow).square().sum().backward()
    assert not module.d.grad.any()
    assert module.b.grad.all()
    assert torch.equal(module.d, torch.full((3,), 0.1, dtype=torch.float64))
