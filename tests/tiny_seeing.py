"""Small bases of images and text, as those of tiny_bases: BLIP (cross-attention) and LLaVA (a connector)."""

import torch
from torch import Tensor, nn

from tiny_bases import BATCH, VOCABULARY, Base, _images, _logits, _text, _with_wide_norms

VISION = {
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "image_size": 12,
    "patch_size": 4,
}
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
}
IMAGE, PLACES = 1, 9


def blip() -> nn.Module:
    from transformers import BlipConfig, BlipForConditionalGeneration

    words = {**TEXT, "encoder_hidden_size": 24, "bos_token_id": 1, "sep_token_id": 2, "tie_word_embeddings": False}
    return BlipForConditionalGeneration(
        BlipConfig(text_config=words, vision_config=dict(VISION), tie_word_embeddings=False)
    )


def llava() -> nn.Module:
    """Reads the tower's last layer, so that all of it is used.  At its first forward transformers hooks the tower to
    collect hidden states, and leaves the hooks there."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    words = {"model_type": "llama", "num_key_value_heads": 2, **TEXT}
    vision = {"model_type": "clip_vision_model", "projection_dim": 16, **VISION}
    config = LlavaConfig(text_config=words, vision_config=vision, image_token_id=IMAGE, vision_feature_layer=-1)
    model = _with_wide_norms(LlavaForConditionalGeneration(config))
    with torch.no_grad():
        model(**_with_places())
    return model


def _captions() -> dict[str, Tensor]:
    return {**_text(), **_images()}


def _with_places() -> dict[str, Tensor]:
    text, places = _text(), torch.full((BATCH, PLACES), IMAGE)
    return {
        "input_ids": torch.cat([places, text["input_ids"]], 1),
        "attention_mask": torch.cat([torch.ones_like(places), text["attention_mask"]], 1),
        **_images(),
    }


BLIP = Base("blip", blip, _captions, _logits)
LLAVA = Base("llava", llava, _with_places, _logits)
