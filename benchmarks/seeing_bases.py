"""Small bases of images and text with random weights, as folders: BLIP that captions, BLIP that answers, LLaVA."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

KINDS = ("blip", "blip_questions", "llava")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]", "<image>"]
VISION = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}
TEXT = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


def make(folder: Path, kind: str, words: Sequence[str]) -> Path:
    """Weights N(0, 1/d); positions, which pixels would drown, N(0, 1/4)."""
    torch.manual_seed(0)
    size = len(words) + len(SPECIAL)
    model = _llava(size) if kind == "llava" else _blip(size, answers=kind == "blip_questions")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "position_embedding" in name:
                parameter.normal_(0.0, 0.5)
            elif parameter.dim() > 1:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)
    _tokenizer(words, llama=kind == "llava").save_pretrained(folder)
    return folder


def _blip(size: int, *, answers: bool) -> Any:
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipForQuestionAnswering

    words = {**TEXT, "vocab_size": size, "encoder_hidden_size": VISION["hidden_size"], "pad_token_id": 0}
    ends = {"bos_token_id": 4, "sep_token_id": 3, "eos_token_id": 3, "tie_word_embeddings": False}
    config = BlipConfig(text_config=words | ends, vision_config=dict(VISION), tie_word_embeddings=False)
    return (BlipForQuestionAnswering if answers else BlipForConditionalGeneration)(config)


def _llava(size: int) -> Any:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    words = {"model_type": "llama", "vocab_size": size, "num_key_value_heads": 2, **TEXT}
    ends = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    vision = {"model_type": "clip_vision_model", "projection_dim": 16, **VISION}
    return LlavaForConditionalGeneration(
        LlavaConfig(text_config=words | ends, vision_config=vision, image_token_id=5, vision_feature_layer=-1)
    )


def _tokenizer(words: Sequence[str], *, llama: bool) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    known = {word: number for number, word in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    if not llama:
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))  # type: ignore[assignment]
    ends = {"bos_token": "[CLS]", "eos_token": "[SEP]"} if llama else {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        additional_special_tokens=["[DEC]", "<image>"],
        model_input_names=["input_ids", "attention_mask"],
        **ends,
    )
