"""Bases of any shape with weights at random, made tensor by tensor and stored as asked: never whole in 16 bit where
they are quantised."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig

from lorica.models.causal_lm import CausalLM
from lorica.models.freed import give_back
from lorica.models.quantised import Quantisation, put, quantisable

Told = Callable[[str], None]


def made(
    config: LlamaConfig,
    dtype: torch.dtype,
    form: Quantisation | None,
    told: Told = lambda name: None,
) -> CausalLM:
    """Weights N(0, 0.02^2), norms one; tied as the config says.  told: each tensor by name, when it is there."""
    with torch.device("meta"):
        model = CausalLM(config).to(dtype)
    small = set() if form is None else set(quantisable(model))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in list(model.named_parameters()):
        owner = name.removesuffix(".weight")
        drawn = _drawn(tuple(parameter.shape), dtype, generator)
        if owner in small and form is not None:
            put(model, owner, form.store(drawn))
        else:
            model.load_state_dict({name: drawn}, strict=False, assign=True)
        del drawn
        give_back()
        told(name)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.eval().requires_grad_(False)
    return model


def _drawn(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    values = torch.ones(shape, dtype=dtype)
    return values.normal_(0, 0.02, generator=generator) if len(shape) > 1 else values


def llama(*, layers: int, width: int, heads: int, keys: int, mlp: int, vocabulary: int, **more: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        max_position_embeddings=4096,
        **{"tie_word_embeddings": False, **more},
    )
