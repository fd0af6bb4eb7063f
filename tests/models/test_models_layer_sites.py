"""Sites that are no plain linears, in the families that have them, from shapes alone."""

from typing import Any

import pytest
import torch
import transformers

from lorica.adapter import plan
from lorica.methods import LoRA
from lorica.models import sites

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "num_experts_per_tok": 2,
}
GATE_UP, DOWN = (4, 48, 32), (4, 32, 24)
FAMILIES: dict[str, tuple[str, dict[str, Any], bool]] = {
    # class, what it is made with so that 4 experts have an inner width of 24, stored as (E, d_in, d_out)
    "mixtral": ("Mixtral", {"num_local_experts": 4, "intermediate_size": 24}, False),
    "qwen2_moe": ("Qwen2Moe", {"num_experts": 4, "moe_intermediate_size": 24}, False),
    "qwen3_moe": ("Qwen3Moe", {"num_experts": 4, "moe_intermediate_size": 24, "head_dim": 8}, False),
    "olmoe": ("Olmoe", {"num_experts": 4, "intermediate_size": 24}, False),
    "gpt_oss": ("GptOss", {"num_local_experts": 4, "intermediate_size": 24, "head_dim": 8}, True),
}


def on_meta(family: str, **options: Any) -> Any:
    with torch.device("meta"):
        config = getattr(transformers, f"{family}Config")(**options)
        return getattr(transformers, f"{family}ForCausalLM")(config)


@pytest.mark.parametrize("name", FAMILIES)
def test_experts_have_the_same_shapes_however_they_are_stored(name: str):
    family, options, transposed = FAMILIES[name]
    model = on_meta(family, **{**SMALL, **options})
    found = [site for site in sites(model) if site.kind == "experts"]
    assert [site.shape for site in found] == [GATE_UP, DOWN] * 2
    assert [site.roles for site in found] == [("gate", "up"), ("down",)] * 2
    assert [site.layer for site in found] == [0, 0, 1, 1]
    for site in found:
        assert site.transposed == transposed
        assert tuple(model.get_parameter(site.weight).shape) == ((4, *site.shape[:0:-1]) if transposed else site.shape)
        assert site.part_of.endswith(".mlp.experts")


def test_experts_of_mixtral_8x7b_count_as_their_closed_form():
    """r E (d_in + d_out) a weight, 32 layers of 8 experts of (28672, 4096) and (4096, 14336)."""
    model = on_meta("Mixtral")
    adapted = plan(model, LoRA(r=8, target_modules=("mlp.experts",)))
    assert adapted.base_parameters == 46_702_792_704
    assert adapted.trainable_parameters == 8 * 32 * 8 * ((28672 + 4096) + (4096 + 14336)) == 104_857_600
    linears = plan(model, LoRA(r=8))
    assert linears.trainable_parameters == 8 * 32 * (2 * (4096 + 4096) + 2 * (4096 + 1024))
    assert "all-linear: 64 weights of experts stay as they are (down_proj, gate_up_proj)" in str(linears)


def test_convolutions_of_vision_and_audio_are_sites():
    with torch.device("meta"):
        resnet = transformers.ResNetModel(
            transformers.ResNetConfig(hidden_sizes=[8, 16], depths=[1, 1], embedding_size=8)
        )
        whisper = transformers.WhisperModel(
            transformers.WhisperConfig(
                d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4
            )
        )
    convolutions = [site for site in sites(resnet) if site.kind == "conv"]
    assert len(convolutions) == sum(isinstance(module, torch.nn.Conv2d) for module in resnet.modules())
    assert convolutions[0].shape == (8, 3, 7, 7)
    assert {site.name: site.shape for site in sites(whisper) if site.kind == "conv"} == {
        "encoder.conv1": (32, 80, 3),
        "encoder.conv2": (32, 32, 3),
    }
