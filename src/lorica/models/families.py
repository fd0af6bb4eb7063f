"""What the modules of known families compute, by the end of their path.  The longest end that fits counts.

q k v o            attention          gate up down    gated MLP
fc1 fc2            plain MLP          embed position type    embeddings
"""

from functools import cache

ROLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # end of the path              roles               families, none for any
    # Llama, Mistral, Qwen, Gemma, ViT, CLIP, BART, OPT, Whisper
    "q_proj": (("q",), ()),
    "k_proj": (("k",), ()),
    "v_proj": (("v",), ()),
    "o_proj": (("o",), ()),
    "out_proj": (("o",), ()),
    "gate_proj": (("gate",), ()),
    "up_proj": (("up",), ()),
    "down_proj": (("down",), ()),
    "fc1": (("fc1",), ()),
    "fc2": (("fc2",), ()),
    # Phi-3, GLM, Phi
    "qkv_proj": (("q", "k", "v"), ()),
    "gate_up_proj": (("gate", "up"), ()),
    "self_attn.dense": (("o",), ()),
    # GPT-NeoX, BLOOM, Falcon, ChatGLM
    "query_key_value": (("q", "k", "v"), ()),
    "attention.dense": (("o",), ()),
    "self_attention.dense": (("o",), ()),
    "dense_h_to_4h": (("fc1",), ()),
    "dense_4h_to_h": (("fc2",), ()),
    # GPT-2 and its kin
    "attn.c_attn": (("q", "k", "v"), ()),
    "attn.c_proj": (("o",), ()),
    "crossattention.c_attn": (("k", "v"), ()),
    "crossattention.q_attn": (("q",), ()),
    "crossattention.c_proj": (("o",), ()),
    "mlp.c_fc": (("fc1",), ()),
    "mlp.c_proj": (("fc2",), ()),
    # BERT, RoBERTa, ELECTRA
    "query": (("q",), ()),
    "key": (("k",), ()),
    "value": (("v",), ()),
    "attention.output.dense": (("o",), ()),
    "crossattention.output.dense": (("o",), ()),
    "intermediate.dense": (("fc1",), ()),
    "output.dense": (("fc2",), ()),
    # DeBERTa
    "query_proj": (("q",), ()),
    "key_proj": (("k",), ()),
    "value_proj": (("v",), ()),
    # DistilBERT
    "q_lin": (("q",), ()),
    "k_lin": (("k",), ()),
    "v_lin": (("v",), ()),
    "out_lin": (("o",), ()),
    "ffn.lin1": (("fc1",), ()),
    "ffn.lin2": (("fc2",), ()),
    # T5
    "SelfAttention.q": (("q",), ()),
    "SelfAttention.k": (("k",), ()),
    "SelfAttention.v": (("v",), ()),
    "SelfAttention.o": (("o",), ()),
    "EncDecAttention.q": (("q",), ()),
    "EncDecAttention.k": (("k",), ()),
    "EncDecAttention.v": (("v",), ()),
    "EncDecAttention.o": (("o",), ()),
    "DenseReluDense.wi": (("fc1",), ()),
    "DenseReluDense.wi_0": (("gate",), ()),
    "DenseReluDense.wi_1": (("up",), ()),
    "DenseReluDense.wo": (("fc2",), ()),
    # ModernBERT, MPT
    "Wqkv": (("q", "k", "v"), ()),
    "attn.Wo": (("o",), ()),
    "mlp.Wi": (("gate", "up"), ("modernbert", "modernbert-decoder")),
    "mlp.Wo": (("fc2",), ("modernbert", "modernbert-decoder")),
    # BLIP's images, LLaVA's connector
    "self_attn.qkv": (("q", "k", "v"), ()),
    "self_attn.projection": (("o",), ()),
    "predictions.decoder": (("head",), ()),
    "patch_embedding": (("patch",), ()),
    "multi_modal_projector.linear_1": (("connector",), ()),
    "multi_modal_projector.linear_2": (("connector",), ()),
    # UNets and transformers of diffusers
    "to_q": (("q",), ()),
    "to_k": (("k",), ()),
    "to_v": (("v",), ()),
    "to_out.0": (("o",), ()),
    "ff.net.0.proj": (("gate", "up"), ()),
    "ff.net.2": (("down",), ()),
    # embeddings
    "embed_tokens": (("embed",), ()),
    "wte": (("embed",), ()),
    "word_embeddings": (("embed",), ()),
    "tok_embeddings": (("embed",), ()),
    "embed_in": (("embed",), ()),
    "shared": (("embed",), ()),
    "wpe": (("position",), ()),
    "embed_positions": (("position",), ()),
    "position_embeddings": (("position",), ()),
    "token_type_embeddings": (("type",), ()),
}

HEADS = frozenset({"lm_head", "embed_out", "classifier", "score", "qa_outputs", "classification_head"})
"""Modules that are a head, or hold one."""
HEADS_OF_QUERIES = ("num_heads", "num_attention_heads", "n_heads", "heads")
HEADS_OF_KEYS = ("num_key_value_heads", "num_kv_heads", "heads_kv")
POSITIONS_OF_PADDING = frozenset(
    {"roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "data2vec-text", "longformer"}
)
"""Families whose positions begin behind the padding id, so that the table holds fewer real ones."""
UNLIMITED = frozenset({"t5", "mt5", "umt5", "bloom", "mpt"})
"""Families whose positions are relative distances: no table ends them."""
_CROSS = frozenset({"crossattention", "EncDecAttention", "encoder_attn", "cross_attn", "cross_attention"})
_CONNECTORS = frozenset({"multi_modal_projector", "connector", "qformer", "language_projection"})


@cache
def roles_of(name: str, family: str) -> tuple[str, ...]:
    """The roles of the module at this path; empty where no row of the table fits."""
    parts = name.split(".")
    for length in (3, 2, 1):
        roles, families = ROLES.get(".".join(parts[-length:]), ((), ()))
        if roles and (not families or family in families):
            return roles
    return ()


def is_cross(name: str) -> bool:
    """Whether a path lies in attention over an encoder's output."""
    return not _CROSS.isdisjoint(name.split("."))


def tower_of(name: str) -> str:
    """Which part of a base of images and text a path lies in: vision, connector, cross-attention or language."""
    parts = name.split(".")
    if not _CONNECTORS.isdisjoint(parts):
        return "connector"
    if any(part.startswith(("vision", "visual")) for part in parts):
        return "vision"
    return "cross-attention" if is_cross(name) else "language"


def is_expert(name: str) -> bool:
    """Whether a path lies in one of several experts, whose outputs are mixed before the residual stream."""
    return "experts" in name.split(".")
