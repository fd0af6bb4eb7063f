"""The shape of a decoder of the Llama family, read from the config that transformers keeps beside a checkpoint."""

from dataclasses import dataclass
from typing import Any

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """d: width of the residual stream; window[i]: how far layer i looks back, None for everything."""

    family: str
    vocab: int
    d: int
    d_ff: int
    layers: int
    heads: int
    heads_kv: int
    d_head: int
    eps: float
    rope: dict[str, Any]
    max_length: int
    tied: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    window: tuple[int | None, ...]

    @classmethod
    def of(cls, config: Any) -> "DecoderConfig":
        """config: the LlamaConfig, MistralConfig, Qwen2Config or Qwen3Config of transformers."""
        family = config.model_type
        attention_bias = bool(getattr(config, "attention_bias", False))
        return cls(
            family=family,
            vocab=config.vocab_size,
            d=config.hidden_size,
            d_ff=config.intermediate_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            heads_kv=config.num_key_value_heads,
            d_head=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            eps=config.rms_norm_eps,
            rope=dict(config.rope_parameters),
            max_length=config.max_position_embeddings,
            tied=config.tie_word_embeddings,
            qkv_bias=family == "qwen2" or attention_bias,
            o_bias=family != "qwen2" and attention_bias,
            mlp_bias=bool(getattr(config, "mlp_bias", False)),
            qk_norm=family == "qwen3",
            window=_windows(config),
        )


def _windows(config: Any) -> tuple[int | None, ...]:
    if config.model_type == "llama":  # has none, whatever a checkpoint's config has kept of another family's
        return (None,) * config.num_hidden_layers
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return (window,) * config.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
