"""Shapes of bases, and checkpoints of them that every side loads: weights drawn from a fixed seed, in bfloat16.

D wide, Q of queries, K of keys and values, F of the MLP, L layers, V vocabulary; the head is the embedding.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(__file__).parents[2] / "runs" / "speed"


@dataclass(frozen=True, kw_only=True)
class Shape:
    layers: int = 30
    width: int = 576
    heads: int = 9
    key_heads: int = 3
    mlp: int = 1536
    vocabulary: int = 49152
    context: int = 8192
    tied: bool = True

    @property
    def query_width(self) -> int:
        return self.width

    @property
    def key_width(self) -> int:
        return self.width // self.heads * self.key_heads

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(d_in, d_out) of a layer's q, k, v, o, gate, up, down."""
        d, k, f = self.width, self.key_width, self.mlp
        return [(d, d), (d, k), (d, k), (d, d), (d, f), (d, f), (f, d)]

    @property
    def name(self) -> str:
        return f"llama-{self.layers}x{self.width}-{self.heads}.{self.key_heads}-{self.mlp}-{self.vocabulary}"


SMOLLM2 = Shape()
TINY = Shape(layers=2, width=64, heads=4, key_heads=2, mlp=128, vocabulary=512, context=512)
LLAMA_8B = Shape(layers=32, width=4096, heads=32, key_heads=8, mlp=14336, vocabulary=128256, context=16384, tied=False)


def checkpoint(shape: Shape, cache: Path = CACHE) -> Path:
    """The folder of a checkpoint of this shape, written when it is first asked for."""
    place = cache / "bases" / shape.name
    if not place.exists():
        unfinished = place.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        _write(shape, unfinished)
        unfinished.rename(place)
    return place


def _write(shape: Shape, place: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=shape.tied,
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(place)
