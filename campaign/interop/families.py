"""The bases of the matrix: tiny models of transformers' families, every tensor noise drawn from its own name.

Each family says what its modules are called, in the words that a config of PEFT would use.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
import transformers as hf
from torch import Tensor, nn

from campaign.interop.odd_names import OddNames
from lorica.models import load_base

VOCABULARY, WIDTH, INNER, LAYERS, HEADS, POSITIONS = 61, 32, 48, 2, 4, 64
DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ENCODER = {
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
}
READER = {**ENCODER, "vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS, "num_labels": 3, "pad_token_id": 1}
SPEAKER = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": INNER,
    "decoder_ffn_dim": INNER,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """make(tied) -> a model whose output embeddings are tied to its input embeddings, or not.

    attention, mlp   names of two projections each, as target_modules would list them
    path             a longer name of one projection in layer 1
    embed, head      names of token embeddings and head; a head that can be tied says so
    norm             name of a norm, for modules_to_save
    positions        name of a table of positions; own_positions: it is no plain lookup
    shared           encoder and decoder share their embeddings in any case
    always_tied      its head is tied to them whatever the config says
    low_rank_head    the head's linear, where the head is more than one
    task             PEFT's task type
    """

    name: str
    make: Callable[[bool], nn.Module]
    attention: tuple[str, str]
    mlp: tuple[str, str]
    path: str
    norm: str
    embed: str | None = None
    head: str | None = None
    tieable: bool = False
    task: str | None = None
    biases: bool = True
    transposed: bool = False
    convolution: str | None = None
    positions: str | None = None
    own_positions: bool = False
    shared: bool = False
    always_tied: bool = False
    low_rank_head: str | None = None
    reads: Callable[[Any], Tensor] = field(default=lambda out: out.logits)

    def model(self, tied: bool) -> nn.Module:
        return filled(self.make(tied)).eval()

    def loaded(self, folder: Path, tied: bool) -> nn.Module:
        """The same base as `load_base` gives it; `folder` keeps the checkpoints from one call to the next."""
        model: Any = self.model(tied)
        if not isinstance(model, hf.PreTrainedModel):
            return model.requires_grad_(False)
        place = folder / f"{self.name}{'-tied' if tied else ''}"
        if not place.exists():
            model.save_pretrained(place)
        return load_base(place)

    def inputs(self) -> dict[str, Tensor]:
        return INPUTS.get(self.name, _tokens)()

    def __repr__(self) -> str:
        return self.name


def filled(model: nn.Module) -> nn.Module:
    """Weights of standard deviation 1/sqrt(fan in), norms about 1, everything else about 0.2."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(crc32(name.encode())))
            if parameter.dim() >= 2:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.2 * noise + (1.0 if name.endswith("weight") else 0.0))
    return model


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def _ids(rows: int, length: int) -> Tensor:
    return torch.randint(3, VOCABULARY, (rows, length), generator=_generator())


def _tokens() -> dict[str, Tensor]:
    return {"input_ids": _ids(3, 11)}


def _both_ends() -> dict[str, Tensor]:
    ids = _ids(3, 9)
    return {"input_ids": ids, "decoder_input_ids": ids[:, :5]}


def _pixels() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(3, 3, 8, 8, generator=_generator())}


def _picture_and_words() -> dict[str, Tensor]:
    ids = _ids(3, 7)
    ids[:, -1] = VOCABULARY - 1  # the end, whose position CLIP reads the text from
    return {"input_ids": ids, **_pixels()}


def _sound() -> dict[str, Tensor]:
    return {
        "input_features": torch.randn(3, 8, 12, generator=_generator()),
        "decoder_input_ids": _ids(3, 5),
    }


def _vectors() -> dict[str, Tensor]:
    return {"ids": _ids(3, 6)}


INPUTS: Mapping[str, Callable[[], dict[str, Tensor]]] = {
    "t5": _both_ends,
    "bart": _both_ends,
    "vit": _pixels,
    "clip": _picture_and_words,
    "whisper": _sound,
    "odd-names": _vectors,
}


def _clip(tied: bool) -> nn.Module:
    words = {**ENCODER, "vocab_size": VOCABULARY, "max_position_embeddings": 16, "eos_token_id": VOCABULARY - 1}
    config = hf.CLIPConfig(
        text_config=words,  # type: ignore[arg-type]
        vision_config={**ENCODER, "image_size": 8, "patch_size": 4},  # type: ignore[arg-type]
        projection_dim=16,
    )
    return hf.CLIPModel(config)


def _clip_scores(out: Any) -> Tensor:
    """Cosines are of size one whatever the weights: embeddings beside them show every direction."""
    return torch.cat([out.logits_per_image.flatten(), out.text_embeds.flatten(), out.image_embeds.flatten()])


LLAMA_LIKE: dict[str, Any] = {
    "attention": ("q_proj", "v_proj"),
    "mlp": ("up_proj", "down_proj"),
    "path": "layers.1.self_attn.v_proj",
    "embed": "embed_tokens",
    "head": "lm_head",
    "norm": "post_attention_layernorm",
    "tieable": True,
    "task": "CAUSAL_LM",
}
BERT_LIKE: dict[str, Any] = {
    "attention": ("query", "value"),
    "mlp": ("intermediate.dense", "attention.output.dense"),
    "path": "layer.1.attention.self.value",
    "embed": "word_embeddings",
    "head": "classifier",
    "norm": "attention.output.LayerNorm",
    "task": "SEQ_CLS",
    "positions": "position_embeddings",
}
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="llama",
            make=lambda tied: hf.LlamaForCausalLM(hf.LlamaConfig(**DECODER, tie_word_embeddings=tied)),
            **LLAMA_LIKE | {"biases": False},
        ),
        Family(
            name="mistral",
            make=lambda tied: hf.MistralForCausalLM(
                hf.MistralConfig(**DECODER, sliding_window=6, tie_word_embeddings=tied)
            ),
            **LLAMA_LIKE | {"biases": False},
        ),
        Family(
            name="qwen2",
            make=lambda tied: hf.Qwen2ForCausalLM(hf.Qwen2Config(**DECODER, tie_word_embeddings=tied)),
            **LLAMA_LIKE,
        ),
        Family(
            name="qwen3",
            make=lambda tied: hf.Qwen3ForCausalLM(hf.Qwen3Config(**DECODER, head_dim=8, tie_word_embeddings=tied)),
            **LLAMA_LIKE | {"biases": False, "norm": "q_norm"},
        ),
        Family(
            name="gemma2",
            make=lambda tied: hf.Gemma2ForCausalLM(
                hf.Gemma2Config(
                    **DECODER, head_dim=8, query_pre_attn_scalar=8, sliding_window=6, tie_word_embeddings=tied
                )
            ),
            **LLAMA_LIKE | {"biases": False},
        ),
        Family(
            name="phi3",
            make=lambda tied: hf.Phi3ForCausalLM(hf.Phi3Config(**DECODER, tie_word_embeddings=tied)),
            **LLAMA_LIKE
            | {
                "attention": ("qkv_proj", "o_proj"),
                "mlp": ("gate_up_proj", "down_proj"),
                "path": "layers.1.self_attn.qkv_proj",
                "biases": False,
            },
        ),
        Family(
            name="gpt2",
            make=lambda tied: hf.GPT2LMHeadModel(
                hf.GPT2Config(
                    vocab_size=VOCABULARY,
                    n_embd=WIDTH,
                    n_layer=LAYERS,
                    n_head=HEADS,
                    n_positions=POSITIONS,
                    tie_word_embeddings=tied,
                )
            ),
            attention=("c_attn", "attn.c_proj"),
            mlp=("c_fc", "mlp.c_proj"),
            path="h.1.attn.c_attn",
            embed="wte",
            positions="wpe",
            head="lm_head",
            norm="ln_2",
            tieable=True,
            task="CAUSAL_LM",
            transposed=True,
        ),
        Family(
            name="gpt-neox",
            make=lambda tied: hf.GPTNeoXForCausalLM(
                hf.GPTNeoXConfig(
                    **{key: value for key, value in DECODER.items() if key != "num_key_value_heads"},
                    rotary_pct=0.5,
                    tie_word_embeddings=tied,
                )
            ),
            attention=("query_key_value", "attention.dense"),
            mlp=("dense_h_to_4h", "dense_4h_to_h"),
            path="layers.1.attention.query_key_value",
            embed="embed_in",
            head="lm_head",
            norm="post_attention_layernorm",
            tieable=True,
            task="CAUSAL_LM",
        ),
        Family(
            name="bloom",
            make=lambda tied: hf.BloomForCausalLM(
                hf.BloomConfig(
                    vocab_size=VOCABULARY, hidden_size=WIDTH, n_layer=LAYERS, n_head=HEADS, tie_word_embeddings=tied
                )
            ),
            attention=("query_key_value", "self_attention.dense"),
            mlp=("dense_h_to_4h", "dense_4h_to_h"),
            path="h.1.self_attention.query_key_value",
            embed="word_embeddings",
            head="lm_head",
            norm="post_attention_layernorm",
            tieable=True,
            task="CAUSAL_LM",
        ),
        Family(
            name="glm",
            make=lambda tied: hf.GlmForCausalLM(hf.GlmConfig(**DECODER, head_dim=8, tie_word_embeddings=tied)),
            **LLAMA_LIKE | {"mlp": ("gate_up_proj", "down_proj")},
        ),
        Family(
            name="bert",
            make=lambda tied: hf.BertForSequenceClassification(hf.BertConfig(**READER)),
            **BERT_LIKE,
        ),
        Family(
            name="roberta",
            make=lambda tied: hf.RobertaForSequenceClassification(hf.RobertaConfig(**READER)),
            **BERT_LIKE | {"low_rank_head": "classifier.dense"},
        ),
        Family(
            name="deberta-v2",
            make=lambda tied: hf.DebertaV2ForTokenClassification(
                hf.DebertaV2Config(
                    **READER | {"pad_token_id": 0},
                    relative_attention=True,
                    pos_att_type=["p2c", "c2p"],
                    position_biased_input=False,
                )
            ),
            **BERT_LIKE
            | {
                "attention": ("query_proj", "value_proj"),
                "path": "layer.1.attention.self.value_proj",
                "positions": None,
                "task": "TOKEN_CLS",
            },
        ),
        Family(
            name="t5",
            make=lambda tied: hf.T5ForConditionalGeneration(
                hf.T5Config(
                    vocab_size=VOCABULARY,
                    d_model=WIDTH,
                    d_kv=8,
                    d_ff=INNER,
                    num_layers=LAYERS,
                    num_decoder_layers=LAYERS,
                    num_heads=HEADS,
                    tie_word_embeddings=tied,
                )
            ),
            attention=("q", "v"),
            mlp=("wi", "wo"),
            path="block.1.layer.0.SelfAttention.v",
            embed="embed_tokens",
            shared=True,
            always_tied=True,
            head="lm_head",
            norm="final_layer_norm",
            tieable=True,
            task="SEQ_2_SEQ_LM",
            biases=False,
        ),
        Family(
            name="bart",
            make=lambda tied: hf.BartForConditionalGeneration(
                hf.BartConfig(
                    **SPEAKER, max_position_embeddings=POSITIONS, scale_embedding=True, tie_word_embeddings=tied
                )
            ),
            attention=("q_proj", "v_proj"),
            mlp=("fc1", "fc2"),
            path="layers.1.self_attn.v_proj",
            embed="embed_tokens",
            shared=True,
            positions="embed_positions",
            own_positions=True,
            head="lm_head",
            norm="final_layer_norm",
            tieable=True,
            task="SEQ_2_SEQ_LM",
        ),
        Family(
            name="vit",
            make=lambda tied: hf.ViTForImageClassification(
                hf.ViTConfig(**ENCODER, image_size=8, patch_size=4, num_labels=3)
            ),
            attention=("q_proj", "v_proj"),
            mlp=("fc1", "fc2"),
            path="layers.1.attention.v_proj",
            head="classifier",
            norm="layernorm",
            convolution="projection",
        ),
        Family(
            name="clip",
            make=_clip,
            attention=("q_proj", "v_proj"),
            mlp=("fc1", "fc2"),
            path="layers.1.self_attn.v_proj",
            embed="token_embedding",
            head="visual_projection",
            norm="final_layer_norm",
            convolution="patch_embedding",
            reads=_clip_scores,
        ),
        Family(
            name="whisper",
            make=lambda tied: hf.WhisperForConditionalGeneration(
                hf.WhisperConfig(
                    **SPEAKER,
                    num_mel_bins=8,
                    max_source_positions=6,
                    max_target_positions=16,
                    tie_word_embeddings=tied,
                    suppress_tokens=None,
                    begin_suppress_tokens=None,
                )
            ),
            attention=("q_proj", "v_proj"),
            mlp=("fc1", "fc2"),
            path="layers.1.self_attn.v_proj",
            embed="embed_tokens",
            head="proj_out",
            positions="embed_positions",
            own_positions=True,
            norm="final_layer_norm",
            tieable=True,
            convolution="conv2",
        ),
        Family(
            name="odd-names",
            make=lambda tied: OddNames(),
            attention=("lora_A", "weight_proj"),
            mlp=("lora", "weights_out"),
            path="lora_layers.1.weight_proj",
            embed="weights",
            head="weight",
            norm="lora_norm",
            reads=lambda out: out,
        ),
    )
}
