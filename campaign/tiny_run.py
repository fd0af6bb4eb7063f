"""A tiny decoder, rows of ragged lengths and an adapter on it: what the campaign and the tests of the loop train."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig

from lorica.data import Dataset, Example
from lorica.methods import LoRA
from lorica.models.causal_lm import CausalLM

VOCABULARY = 61


def base(dtype: torch.dtype = torch.float32, seed: int = 0, layers: int = 1) -> CausalLM:
    """d = 32, two heads of keys and values for four of queries."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    model = CausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.2 if parameter.dim() > 1 else 1 + 0.1 * noise)
    return model.to(dtype).eval()


def example(row: int, length: int, generator: np.random.Generator) -> Example:
    """Tokens of a periodic text, which can be learned; the first third is a prompt."""
    start, stride = generator.integers(0, VOCABULARY), generator.integers(1, 4)
    tokens = (start + stride * np.arange(length)) % VOCABULARY
    learned = np.arange(length) >= max(1, length // 3)
    return Example(tokens.astype(np.int32), learned, row, f"train.jsonl:{row + 1}")


def dataset(rows: int = 22, seed: int = 0, lengths: Sequence[int] | None = None) -> Dataset:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(3, 17, rows).tolist() if lengths is None else lengths
    examples = tuple(example(row, length, generator) for row, length in enumerate(lengths))
    return Dataset(examples, (), len(examples))


def lora(**options: Any) -> LoRA:
    return LoRA(**{"r": 4, "alpha": 12, "dropout": 0.1, **options})


def noisy(attached: Any, seed: int = 7) -> Any:
    """Noise in every trained tensor: a zero B would pass anything."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(attached.named_parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    return attached
