"""Tiny bases of eight families, made from transformers' configs, and the adapter that each is given."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from peft import LoraConfig
from torch import Tensor, nn

VOCABULARY, WIDTH, INNER = 61, 32, 48
DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
ENCODER = {
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "attn_implementation": "eager",
}


@dataclass(frozen=True)
class Base:
    """One family: how to make it, what to feed it, and PEFT's config of its adapter."""

    name: str
    make: Callable[[], nn.Module]
    adapter: dict[str, Any]

    def saved(self, folder: Path) -> Path:
        torch.manual_seed(0)
        with only_their_own_warnings():
            model = self.make()
            for parameter in model.parameters():  # biases start at zero, which would hide a lost one
                parameter.data.add_(0.02 * torch.randn_like(parameter))
            model.save_pretrained(folder)  # type: ignore[operator]
        return folder

    def peft_config(self, **more: Any) -> LoraConfig:
        return LoraConfig(**deepcopy(self.adapter), **more)  # PEFT appends to the lists it is given

    def inputs(self, rows: int = 3) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(7)
        if self.name == "vit":
            return {"pixel_values": torch.randn(rows, 3, 8, 8, generator=generator)}
        ids = torch.randint(3, VOCABULARY, (rows, 11), generator=generator)
        return {"input_ids": ids, "decoder_input_ids": ids[:, :5]} if self.name == "t5" else {"input_ids": ids}


BASES = [
    Base(
        "llama",
        lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**DECODER)),
        {
            "r": 4,
            "lora_alpha": 10,
            "task_type": "CAUSAL_LM",
            "target_modules": "all-linear",
            "rank_pattern": {"q_proj": 3, "layers.1.self_attn.v_proj": 2},
            "alpha_pattern": {"q_proj": 5, "mlp.gate_proj": 7},
        },
    ),
    Base(
        "mistral",
        lambda: hf.MistralForCausalLM(hf.MistralConfig(**DECODER, sliding_window=6)),
        {
            "r": 3,
            "lora_alpha": 7,
            "task_type": "CAUSAL_LM",
            "target_modules": ["q_proj", "v_proj", "down_proj"],
            "modules_to_save": ["lm_head"],
            "use_rslora": True,
        },
    ),
    Base(
        "qwen2",
        lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**DECODER)),
        {
            "r": 2,
            "lora_alpha": 5,
            "task_type": "CAUSAL_LM",
            "target_modules": ["q_proj", "k_proj", "o_proj"],
            "bias": "lora_only",
            "alpha_pattern": {"layers.0.self_attn.k_proj": 3},
        },
    ),
    Base(
        "qwen3",
        lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**DECODER, head_dim=8)),
        {
            "r": 2,
            "lora_alpha": 6,
            "task_type": "CAUSAL_LM",
            "target_modules": ["embed_tokens", "q_proj", "up_proj"],
            "modules_to_save": ["model.norm", "q_norm"],
        },
    ),
    Base(
        "gpt2",
        lambda: hf.GPT2LMHeadModel(
            hf.GPT2Config(vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=64)
        ),
        {
            "r": 3,
            "lora_alpha": 8,
            "task_type": "CAUSAL_LM",
            "target_modules": ["c_attn", "mlp.c_proj"],
            "fan_in_fan_out": True,
            "bias": "all",
            "rank_pattern": {"c_attn": 5},
        },
    ),
    Base(
        "bert",
        lambda: hf.BertForSequenceClassification(
            hf.BertConfig(**ENCODER, vocab_size=VOCABULARY, max_position_embeddings=64, num_labels=3)
        ),
        {
            "r": 4,
            "lora_alpha": 9,
            "task_type": "SEQ_CLS",
            "target_modules": ["query", "value", "attention.output.dense"],
            "modules_to_save": ["classifier"],
            "bias": "lora_only",
            "use_rslora": True,
            "rank_pattern": {"attention.self.value": 2},
        },
    ),
    Base(
        "t5",
        lambda: hf.T5ForConditionalGeneration(
            hf.T5Config(
                vocab_size=VOCABULARY,
                d_model=WIDTH,
                d_kv=8,
                d_ff=INNER,
                num_layers=2,
                num_decoder_layers=2,
                num_heads=4,
            )
        ),
        {
            "r": 2,
            "lora_alpha": 12,
            "task_type": "SEQ_2_SEQ_LM",
            "target_modules": ["q", "v", "wo"],
            "modules_to_save": ["final_layer_norm"],
            "alpha_pattern": {"EncDecAttention.q": 4},
        },
    ),
    Base(
        "vit",
        lambda: hf.ViTForImageClassification(hf.ViTConfig(**ENCODER, image_size=8, patch_size=4, num_labels=3)),
        {
            "r": 3,
            "lora_alpha": 11,
            "target_modules": "all-linear",
            "modules_to_save": ["classifier"],
            "rank_pattern": {"layers.0.mlp.fc1": 5},
        },
    ),
]


@contextmanager
def only_their_own_warnings() -> Iterator[None]:
    """Warnings of peft about an adapter stay errors; those that peft and transformers have for each other do not."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield


def add_noise(parameters: Any, std: float = 0.3) -> None:
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(std * torch.randn(parameter.shape, generator=generator, dtype=torch.float32))


def rounding(model: nn.Module) -> float:
    """float32: each sum of K terms errs by about sqrt(K) eps of its size, and a pass is a chain of such sums."""
    matrices = [p for p in model.parameters() if p.dim() == 2]
    longest = max(max(p.shape) for p in matrices)
    return torch.finfo(torch.float32).eps * longest**0.5 * len(matrices)


def distance(y: Tensor, reference: Tensor) -> float:
    """Relative to the largest value compared."""
    return float((y - reference).abs().max() / reference.abs().max())
