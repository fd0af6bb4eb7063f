"""Tiny checkpoints of every kind of decoder, of transformers' own making, and the same in our decoder."""

from functools import cache
from typing import Any

import torch
from torch import nn

from lorica.models.causal_lm import CausalLM
from tiny_bases import filled

VOCABULARY = 61
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": None,
    "initializer_range": 0.2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16}
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}
WINDOWS = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama without sharing": ("Llama", {"num_key_value_heads": 4}),
    "llama with one head of keys": ("Llama", {"num_key_value_heads": 1}),
    "llama with wide heads and biases": ("Llama", {"head_dim": 16, "attention_bias": True, "mlp_bias": True}),
    "llama tied": ("Llama", {"tie_word_embeddings": True}),
    "llama 3 frequencies": ("Llama", {"rope_parameters": LLAMA3}),
    "llama linear frequencies": ("Llama", {"rope_parameters": LINEAR}),
    "llama yarn frequencies": ("Llama", {"rope_parameters": YARN}),
    "llama with the window of another family": ("Llama", {"sliding_window": 4}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral sliding": ("Mistral", {"sliding_window": 4}),
    "qwen2": ("Qwen2", {}),
    "qwen2 sliding in some layers": ("Qwen2", WINDOWS),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3 tied and sliding": ("Qwen3", {"tie_word_embeddings": True, **WINDOWS}),
}


def config(kind: str) -> Any:
    import transformers

    family, options = KINDS[kind]
    return getattr(transformers, f"{family}Config")(**{**COMMON, **options})


@cache
def theirs(kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """transformers' model, every weight noise, norms and biases included."""
    import transformers

    family, _ = KINDS[kind]
    model = filled(getattr(transformers, f"{family}ForCausalLM")(config(kind)))
    return model.to(dtype).eval().requires_grad_(False)


@cache
def ours(kind: str, dtype: torch.dtype = torch.float32) -> CausalLM:
    """Our decoder with the same weights."""
    model = CausalLM(config(kind))
    model.load_state_dict(theirs(kind, dtype).state_dict(), strict=True)
    return model.to(dtype).eval().requires_grad_(False)


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))
