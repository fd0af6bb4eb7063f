"""Small bases of every family, on which laws and contracts are checked.

Every weight is noise drawn from its own name, never the identity, and every bias is away from zero: an edit that is
dropped, doubled or transposed shows.  None has dropout of its own.  Double precision unless asked otherwise, so that a
tolerance can be a few thousand rounding errors.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zlib import crc32

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lorica.models.causal_lm import CausalLM
from lorica.models.decoder import RMSNorm
from lorica.models.quantised import Quantisation, QuantisedLinear, plain_linear, quantise

VOCABULARY = 61
BATCH, LENGTH = 3, 9


@dataclass(frozen=True)
class Base:
    """build() is a new model of the same weights each time; inputs are rows of unequal length where it has a mask."""

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Tensor]]
    read: Callable[[Any], Tensor]

    def build(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        return filled(self.make()).to(dtype).eval().requires_grad_(False)

    def plain(self) -> nn.Module:
        """The same with every weight dense."""
        return self.build()

    def output(self, model: nn.Module, rows: slice = slice(None)) -> Tensor:
        """(B, ...) logits of the real tokens, zero at padding."""
        given = {name: value[rows] for name, value in self.inputs().items()}
        dtype = next(parameter.dtype for parameter in model.parameters() if parameter.dtype.is_floating_point)
        given = {name: value.to(dtype) if value.dtype.is_floating_point else value for name, value in given.items()}
        out = self.read(model(**given))
        mask = given.get("attention_mask")
        seen = mask if mask is not None and mask.shape == out.shape[:2] else None
        return out if seen is None else out * seen[..., None]

    def loss(self, model: nn.Module, rows: slice = slice(None)) -> Tensor:
        """A fixed random projection of the output: a gradient of size one for every logit."""
        out = self.output(model)
        weights = torch.empty_like(out).copy_(torch.randn(out.shape, generator=torch.Generator().manual_seed(3)))
        return (out * weights)[rows].sum()

    def __repr__(self) -> str:
        return self.name


def filled(model: nn.Module) -> nn.Module:
    """Weights of standard deviation 1/sqrt(d_in), norms about 1, biases about 0.3."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(crc32(name.encode())))
            norm = parameter.dim() == 1 and name.endswith("weight")
            std = 0.3 if parameter.dim() < 2 else parameter.shape[-1] ** -0.5
            if name.endswith("Attention.q.weight"):  # T5 does not scale its scores
                std *= 8**-0.5
            parameter.copy_(norm + std * noise)
    return model


def stir(parameters: Iterable[tuple[str, nn.Parameter]], std: float = 0.2) -> None:
    """Noise on every tensor of an adapter: a zero B passes anything."""
    with torch.no_grad():
        for name, parameter in parameters:
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(crc32(name.encode()) ^ 1))
            parameter.add_(std * noise)


def _text(mask: bool = True) -> dict[str, Tensor]:
    ids = torch.randint(3, VOCABULARY, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))
    seen = torch.arange(LENGTH) < torch.tensor([[LENGTH], [5], [7]])
    return {"input_ids": ids, "attention_mask": seen.long()} if mask else {"input_ids": ids}


def llama() -> nn.Module:
    from transformers import LlamaConfig

    return CausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            attention_bias=True,
            mlp_bias=True,
        )
    )


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return GPT2LMHeadModel(config)


def opt() -> nn.Module:
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=24,
        dropout=0.0,
    )
    return OPTForCausalLM(config)


def bart() -> nn.Module:
    """Its decoder, as a causal model."""
    from transformers import BartConfig, BartForCausalLM

    return BartForCausalLM(BartConfig(**BART_SHAPE, is_decoder=True, is_encoder_decoder=False))


BART_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "max_position_embeddings": 24,
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 40),
    **dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.0),
}


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=64,
        num_labels=5,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config)


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=40,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
        dropout_rate=0.0,
        tie_word_embeddings=False,
    )
    return _with_wide_norms(T5ForConditionalGeneration(config))


def _with_wide_norms(model: nn.Module) -> nn.Module:
    """T5's and Llama's norms take means in float32 whatever the weights, which would hide errors of 1e-6."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child).__name__ in ("T5LayerNorm", "LlamaRMSNorm"):
                setattr(parent, name, RMSNorm(child.weight.numel(), child.variance_epsilon))  # type: ignore[union-attr, arg-type]
    return model


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        image_size=12,
        patch_size=4,
        num_labels=5,
    )
    return ViTForImageClassification(config)


def _translation() -> dict[str, Tensor]:
    answers = torch.randint(3, VOCABULARY, (BATCH, 6), generator=torch.Generator().manual_seed(2))
    return {**_text(), "decoder_input_ids": answers}


def _images() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(BATCH, 3, 12, 12, generator=torch.Generator().manual_seed(1))}


def _logits(output: Any) -> Tensor:
    return output.logits


@dataclass(frozen=True, repr=False)
class QuantisedBase(Base):
    """Its linears are stored as `form` says."""

    form: Quantisation

    def build(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        model = super().build(dtype)
        quantise(model, self.form)
        return model

    def plain(self) -> nn.Module:
        model = self.build()
        for name in [name for name, module in model.named_modules() if isinstance(module, QuantisedLinear)]:
            module = model.get_submodule(name)
            model.set_submodule(name, plain_linear(module, module.weight))  # type: ignore[arg-type]
        return model


@dataclass(frozen=True, repr=False)
class KeptBase(QuantisedBase):
    """Its checkpoint is kept: the weights as they were before can be read again."""

    def build(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        model: Any = super().build(dtype)
        model.source = str(_checkpoint(self.make))
        return model

    def original(self, name: str) -> Tensor:
        return load_file(_checkpoint(self.make) / "model.safetensors")[name]


_kept = TemporaryDirectory()


@cache
def _checkpoint(make: Callable[[], nn.Module]) -> Path:
    folder = Path(_kept.name) / make.__name__
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    weights = {name: tensor.clone() for name, tensor in filled(make()).double().state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


LLAMA = Base("llama", llama, _text, _logits)
GPT2 = Base("gpt2", gpt2, _text, _logits)
OPT = Base("opt", opt, _text, _logits)
BART = Base("bart", bart, _text, _logits)
BERT = Base("bert", bert, _text, _logits)
T5 = Base("t5", t5, _translation, _logits)
VIT = Base("vit", vit, _images, _logits)
NF4 = QuantisedBase("llama-nf4", llama, _text, _logits, Quantisation(form="nf4", double=True))
NF4_KEPT = KeptBase("llama-nf4", llama, _text, _logits, Quantisation(form="nf4", double=True))
INT8_KEPT = KeptBase("bert-int8", bert, _text, _logits, Quantisation(form="int8"))
INT8 = QuantisedBase("bert-int8", bert, _text, _logits, Quantisation(form="int8"))
BASES = (LLAMA, GPT2, BERT, T5, VIT)
