"""The arithmetic of memory: published parameter counts and sizes, and what the decoder really keeps."""

import sys
from dataclasses import replace
from math import prod
from typing import Any

import pytest
import torch
from torch import nn

import lorica
from lorica import adapter, budget
from lorica.budget import Machine
from lorica.budget.memory import Shapes, Workload, memory_of, two_moments
from lorica.errors import RequestError
from lorica.methods import (
    IA3,
    AdaLoRA,
    Bottleneck,
    DoRA,
    Full,
    HeadOnly,
    HiRA,
    LoHa,
    LoKr,
    LoRA,
    LoRAFA,
    Method,
    MultiLoRA,
    Norm,
    Prefix,
    Prompt,
    TrainableTokens,
    VeRA,
)
from lorica.models import sites
from lorica.models.causal_lm import CausalLM
from lorica.models.layout import Layout

LLAMA = {"num_attention_heads": 32, "vocab_size": 32000}
# Parameters as the checkpoints on the hub have them, and those of LoRA r=16 on all linears.
KNOWN: dict[str, tuple[dict[str, Any], int, int]] = {
    "Llama-2-7B": (
        {**LLAMA, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32},
        6_738_415_616,
        39_976_960,
    ),
    "Llama-2-13B": (
        {
            **LLAMA,
            "hidden_size": 5120,
            "intermediate_size": 13824,
            "num_hidden_layers": 40,
            "num_attention_heads": 40,
        },
        13_015_864_320,
        62_586_880,
    ),
    "LLaMA-65B": (
        {
            **LLAMA,
            "hidden_size": 8192,
            "intermediate_size": 22016,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
        },
        65_285_660_672,
        199_884_800,
    ),
    "Llama-3.1-8B": (
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
        },
        8_030_261_248,
        41_943_040,
    ),
}


def shapes_of(config: dict[str, Any], dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    from transformers import LlamaConfig

    with torch.device("meta"):
        return CausalLM(LlamaConfig(**{"tie_word_embeddings": False, **config})).to(dtype)


@pytest.mark.parametrize("name", KNOWN)
def test_parameters_of_known_models_are_counted_exactly(name: str) -> None:
    config, parameters, trained = KNOWN[name]
    plan = adapter.plan(shapes_of(config), LoRA(r=16))
    assert plan.base_parameters == parameters
    assert plan.trainable_parameters == trained
    memory = memory_of(plan, Workload(), "cpu", decoder=True)
    assert memory.weights == 2 * parameters
    assert memory.adapter + memory.gradients + memory.optimizer == 16 * trained


def test_arithmetic_of_a_token_is_the_published_formula() -> None:
    """Llama-2-7B, r=16 on all linears, 512 tokens: 27.14 GFLOP, and 42.12 with recomputation at 2048."""
    plan = adapter.plan(shapes_of(KNOWN["Llama-2-7B"][0]), LoRA(r=16))
    place = budget.machine("cpu", 1e12)
    short = budget.forecast(plan, Workload(length=512), place, decoder=True)
    long = budget.forecast(plan, Workload(length=2048, recomputed=None), place, decoder=True)
    assert short.flops_per_token == pytest.approx(27.14e9, rel=5e-4)
    assert long.flops_per_token == pytest.approx(42.12e9, rel=5e-4)


@pytest.mark.parametrize("tied", [False, True])
def test_arithmetic_of_a_token_is_six_a_weight_where_all_are_trained(tied: bool) -> None:
    """Forward 2, and both gradients; an embedding is looked up, and is the head as well where they are tied."""
    plan = adapter.plan(shapes_of({**KNOWN["Llama-2-7B"][0], "tie_word_embeddings": tied}), Full())
    shapes = Shapes.of(plan.base)
    found = budget.forecast(plan, Workload(length=512), budget.machine("cpu", 1e12), decoder=True).flops_per_token
    attention = 7 * 512 * shapes.q * shapes.layers
    assert found == 6 * (shapes.linear_parameters + shapes.head_parameters) + attention


def test_arithmetic_of_a_token_leaves_out_what_is_made_once_a_pass() -> None:
    plan = adapter.plan(shapes_of(KNOWN["Llama-2-7B"][0]), Prefix())
    shapes = Shapes.of(plan.base)
    found = budget.forecast(plan, Workload(length=512), budget.machine("cpu", 1e12), decoder=True).flops_per_token
    assert found == 4 * (shapes.linear_parameters + shapes.head_parameters) + 7 * 512 * shapes.q * shapes.layers


def test_shapes_are_read_off_the_sites() -> None:
    config = KNOWN["Llama-3.1-8B"][0]
    shapes = Shapes.of(sites(shapes_of(config)))
    assert (shapes.layers, shapes.d, shapes.q, shapes.k, shapes.f) == (32, 4096, 4096, 1024, 14336)
    assert (shapes.vocabulary, shapes.width) == (128256, 2)


SMALL = {
    "hidden_size": 96,
    "intermediate_size": 224,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 61,
}


def kept_bytes(dtype: torch.dtype, recomputed: int = 0, method: Method | None = None) -> int:
    """What autograd keeps for a backward pass of 4 documents of 64 tokens, each tensor once, parameters left out."""
    from transformers import LlamaConfig

    torch.manual_seed(0)
    model = CausalLM(LlamaConfig(**SMALL)).to(dtype)
    model.model.recomputed_layers = recomputed
    adapter.attach(model, method or LoRA(r=4))
    held = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, tuple[torch.UntypedStorage, int]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            kept[storage.data_ptr()] = (storage, storage.nbytes())
        return tensor

    layout = Layout.of([64] * 4, device=torch.device("cpu"))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.hidden(torch.randint(0, 61, (256,)), layout)
    total = sum(size for _, size in kept.values())
    del hidden
    return total


KEPT: tuple[Method, ...] = (
    LoRA(r=4),
    LoRA(r=4, target_modules="minimal"),
    LoRA(r=4, init="pissa"),
    LoRAFA(r=4),
    DoRA(r=4),
    AdaLoRA(r=4),
    IA3(),
    VeRA(r=16),
    MultiLoRA(n=2, r=4),
    LoHa(r=3),
    LoKr(r=2),
    HiRA(r=4),
    Bottleneck(size=4),
    Full(),
    Norm(),
    Prefix(length=2),
    Prompt(length=2),
    TrainableTokens(token_indices=(1, 2)),
)


@pytest.mark.parametrize("method", KEPT, ids=[f"{each.kind}-{n}" for n, each in enumerate(KEPT)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_what_the_decoder_keeps(dtype: torch.dtype, method: Method) -> None:
    """Within 16 %: masks, angles and copies of what is small, which grow with other things than width, are not in the
    formula, and of its first block an adapter needs the part behind it alone."""
    plan = adapter.plan(shapes_of(SMALL, dtype), method)
    planned = memory_of(plan, Workload(tokens=256, length=64), "cpu", decoder=True)
    assert planned.activations == pytest.approx(kept_bytes(dtype, method=method), rel=0.16)


@pytest.mark.parametrize("pattern", ["*.layers.[23].*", "*.layers.3.*"])
def test_blocks_below_the_first_that_is_edited_keep_nothing(pattern: str) -> None:
    method = LoRA(r=4, target_modules=pattern)
    plan = adapter.plan(shapes_of(SMALL, torch.float32), method)
    planned = memory_of(plan, Workload(tokens=256, length=64), "cpu", decoder=True)
    assert planned.activations == pytest.approx(kept_bytes(torch.float32, method=method), rel=0.16)


def test_a_head_alone_keeps_nothing_of_the_blocks() -> None:
    plan = adapter.plan(shapes_of(SMALL, torch.float32), HeadOnly())
    assert memory_of(plan, Workload(), "cpu", decoder=True).activations == 0
    assert kept_bytes(torch.float32, method=HeadOnly()) == 0


def test_recomputing_blocks_saves_what_the_plan_says() -> None:
    plan = adapter.plan(shapes_of(SMALL, torch.float32), LoRA(r=4))
    whole, half = (
        memory_of(plan, Workload(tokens=256, length=64, recomputed=n), "cpu", decoder=True).activations for n in (0, 2)
    )
    measured = kept_bytes(torch.float32) - kept_bytes(torch.float32, recomputed=2)
    assert whole - half == pytest.approx(measured, rel=0.2)


def test_full_training_counts_the_second_copy() -> None:
    plan = adapter.plan(shapes_of(SMALL, torch.float32), Full())
    memory = memory_of(plan, Workload(), "cpu", decoder=True)
    assert memory.adapter == memory.weights == 4 * sum(prod(site.shape) for site in plan.sites)


def test_the_peak_is_the_sum_of_the_parts_and_decides_what_fits() -> None:
    plan = adapter.plan(shapes_of(KNOWN["Llama-2-7B"][0]), LoRA(r=16))
    parts = memory_of(plan, Workload(tokens=512), "cuda", decoder=True).to_dict()
    assert parts.pop("peak") == sum(parts.values())
    work = Workload(tokens=512, length=512)
    roomy, tight = (budget.forecast(plan, work, budget.machine("cuda", gb * 1e9), decoder=True) for gb in (24, 14))
    assert roomy.fits is True
    assert tight.fits is False
    assert "does not fit; lorica plan RECIPE --fit shows what does" in str(tight)
    assert roomy.to_dict()["memory_bytes"]["peak"] == roomy.memory.peak


def test_no_more_blocks_are_computed_again_than_memory_demands() -> None:
    plan = adapter.plan(shapes_of(KNOWN["Llama-2-7B"][0]), LoRA(r=16))
    work, counts = Workload(tokens=4096, length=2048), [*range(32), None]

    def peak(count: int | None) -> float:
        return memory_of(plan, replace(work, recomputed=count), "cuda", decoder=True).peak / 1e9

    def chosen(memory: float) -> int | None:
        device = budget.machine("cuda", memory * 1e9)
        return budget.fewest_recomputed(plan, work, device, counts, decoder=True, moments=two_moments)

    assert chosen(40) == 0
    for memory in (26, 24, 22, 20):
        count = chosen(memory)
        assert count
        assert peak(count) <= 0.95 * memory < peak(count - 1)
    assert chosen(8) is None
    assert budget.fewest_recomputed(plan, work, Machine("?", "cuda", 0), counts, decoder=True, moments=two_moments) == 0


def test_the_card_that_is_named_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {torch.device(device).index}")
    monkeypatch.setattr(sys.modules[Machine.__module__], "free_memory", lambda device: (10 + device.index, 99))
    assert budget.machine("cuda:1") == Machine("card 1", "cuda", 11)


def test_shapes_alone_are_planned_for_this_machine() -> None:
    """They lie on no device, and hold none of its memory."""
    shown = lorica.plan(shapes_of(SMALL), LoRA(r=4))
    assert shown.fits is True
    assert shown.machine.kind == budget.machine().kind


def test_this_machine_tells_its_memory_and_no_memory_is_refused() -> None:
    assert budget.machine("cpu").available > 0
    with pytest.raises(RequestError, match="no amount of memory"):
        budget.machine("cpu", -1e9)
