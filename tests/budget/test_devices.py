"""Cards by name, and what fits them: QLoRA's published sizes, from configs alone."""

import json
from pathlib import Path

import pytest

import lorica
from lorica.budget import Forecast
from lorica.budget.devices import DEVICES, device, memory_in_bytes
from lorica.budget.memory import Memory
from lorica.errors import RequestError
from lorica.models.loading import shapes_only
from lorica.train import TrainConfig

SHAPES = {
    "7B": (32, 4096, 32, 32, 11008, 32000),
    "13B": (40, 5120, 40, 40, 13824, 32000),
    "33B": (60, 6656, 52, 52, 17920, 32000),
    "65B": (80, 8192, 64, 64, 22016, 32000),
    "3.1-8B": (32, 4096, 32, 8, 14336, 128256),
}
COUNTS = {"7B": 6_738_415_616, "13B": 13_015_864_320, "65B": 65_285_660_672, "3.1-8B": 8_030_261_248}
"""Of Llama-2-7B and 13B, LLaMA-65B and Llama-3.1-8B."""


@pytest.fixture
def folder(tmp_path: Path):
    def made(name: str) -> Path:
        layers, d, heads, keys, f, vocabulary = SHAPES[name]
        config = {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "hidden_act": "silu",
            "vocab_size": vocabulary,
            "hidden_size": d,
            "intermediate_size": f,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": keys,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": False,
            "dtype": "bfloat16",
        }
        place = tmp_path / name
        place.mkdir()
        (place / "config.json").write_text(json.dumps(config))
        return place

    return made


def planned(folder: Path, r: int, card: str) -> Forecast:
    config = TrainConfig(rows_per_step=1, gradient_checkpointing=True, micro_batch_tokens=512)
    shapes = shapes_only(folder, quantize="nf4", double_quant=True)
    return lorica.plan(shapes, lorica.LoRA(r=r), train=config, device=card)


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_of_published_bases_are_counted_exactly(folder, name: str):
    plan = planned(folder(name), 8, "RTX 4090").plan
    assert plan.total_parameters - plan.trainable_parameters == COUNTS[name]


@pytest.mark.parametrize(
    ("name", "card", "fits"),
    [
        ("7B", "RTX 3060 Ti", True),
        ("13B", "RTX 3060 Ti", False),
        ("33B", "RTX 3090", True),
        ("65B", "RTX 3090", False),
        ("65B", "RTX A6000", True),
    ],
)
def test_what_qlora_fits_with_512_tokens_and_r_16(folder, name: str, card: str, fits: bool):
    assert planned(folder(name), 16, card).fits is fits


@pytest.mark.parametrize(("name", "published"), [("7B", 6.08), ("13B", 10.65), ("65B", 45.24)])
def test_the_published_arithmetic_is_ours_but_for_what_is_named(folder, name: str, published: float):
    """r=64, 512 tokens, checkpointing, 12 bytes a trained parameter.

    Ours counts 16 bytes (float32 adapters with their gradients and two moments; 12 has 16-bit adapters and gradients),
    the context of the device, a layer's backward beside the chunk of logits and not the larger of the two, and less of
    a block, because a gated MLP that is one function makes silu(gate) and the product again.
    """
    layers, d, heads, keys, f, vocabulary = SHAPES[name]
    found = planned(folder(name), 64, "RTX A6000")
    memory, trained = found.memory, found.plan.trainable_parameters
    q, k = d, d // heads * keys
    block = 2 * (4 * d + 2 * q + 2 * k + 2 * f + 2 * heads)
    theirs = {
        "weights": memory.weights,
        "adapter": 12 * trained,
        "blocks": 2 * 512 * d * layers,
        "busy": max(512 * (block + 2 * (2 * d + f)) + 2 * d * f, 512 * vocabulary * 6 + 2 * 512 * d),
    }
    assert sum(theirs.values()) / 1e9 == pytest.approx(published, abs=0.005)
    assert memory.adapter + memory.gradients + memory.optimizer == 16 * trained
    assert _without(memory) == pytest.approx(theirs["weights"] + theirs["blocks"] + theirs["busy"], rel=0.04)


def _without(memory: Memory) -> int:
    """All but the adapter's own state and the context."""
    return memory.weights + memory.activations + memory.logits + memory.buffers


def test_every_device_names_its_source_and_has_a_name_of_its_own():
    names = [each.name for each in DEVICES]
    assert len({name.lower().replace(" ", "") for name in names}) == len(names)
    assert all(each.source and each.memory > 1e9 and 0 < each.usable <= 1 for each in DEVICES)
    assert all(device(each.name) is each for each in DEVICES)


@pytest.mark.parametrize(("given", "name"), [("rtx3060ti", "RTX 3060 Ti"), ("NVIDIA GeForce RTX 4090", "RTX 4090")])
def test_a_device_is_found_however_it_is_written(given: str, name: str):
    assert device(given).name == name


@pytest.mark.parametrize(
    ("given", "told"), [("rtx 3061", "RTX 3060"), ("A100", "A100 40 GB, A100 80 GB"), ("toaster", "--memory 24GB")]
)
def test_an_unknown_device_is_one_line_with_what_is_near(given: str, told: str):
    with pytest.raises(RequestError, match=told) as caught:
        device(given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("given", "size"), [("8", 8e9), ("8GB", 8e9), ("24 GiB", 24 * 2**30), ("1.5tb", 1.5e12)])
def test_memory_is_decimal_unless_it_says_otherwise(given: str, size: float):
    assert memory_in_bytes(given) == size


@pytest.mark.parametrize("given", ["", "banana", "-3", "0", "nan", "inf", "8 elephants", "1e30"])
def test_absurd_memory_is_refused(given: str):
    with pytest.raises(RequestError, match="is no amount of memory"):
        memory_in_bytes(given)


SMS_AND_CLOCKS = {
    "RTX 2060": (30, 1.680, 256),
    "RTX 2080 Ti": (68, 1.545, 256),
    "RTX 3060": (28, 1.777, 256),
    "RTX 3060 Ti": (38, 1.665, 256),
    "RTX 3070": (46, 1.725, 256),
    "RTX 3080": (68, 1.710, 256),
    "RTX 3090": (82, 1.695, 256),
    "RTX A6000": (84, 1.800, 512),
    "RTX 4060": (24, 2.460, 256),
    "RTX 4060 Ti 16 GB": (34, 2.535, 256),
    "RTX 4070": (46, 2.475, 256),
    "RTX 4070 Ti": (60, 2.610, 256),
    "RTX 4080": (76, 2.505, 256),
    "RTX 4090": (128, 2.520, 256),
    "RTX 5090": (170, 2.407, 256),
    "T4": (40, 1.590, 512),
    "V100 16 GB": (80, 1.530, 512),
    "V100 32 GB": (80, 1.530, 512),
    "A10": (72, 1.695, 512),
    "A100 40 GB": (108, 1.410, 1024),
    "A100 80 GB": (108, 1.410, 1024),
    "L4": (58, 2.040, 512),
    "L40S": (142, 2.490, 512),
    "H100 80 GB": (132, 1.830, 2048),
    "H200": (132, 1.830, 2048),
}
"""SMs, boost clock in GHz, and products of 16 bits that an SM adds up in float32 a clock (dense), of the makers'
specifications."""


def test_published_rates_are_what_multiprocessors_and_clocks_give():
    published = {each.name: each.tflops for each in DEVICES if each.kind == "cuda"}
    assert published.keys() == SMS_AND_CLOCKS.keys()
    for name, (sms, clock, products) in SMS_AND_CLOCKS.items():
        assert published[name] == pytest.approx(sms * products * 2 * clock / 1e3, rel=0.005), name


def test_unified_memory_and_processors_are_there_and_lose_the_system_s_share():
    apple, cpu = device("m4 max 128gb"), device("CPU 16 GB")
    assert (apple.kind, cpu.kind) == ("mps", "cpu")
    assert apple.available == 96 * 2**30
    assert cpu.available < 16 * 2**30
