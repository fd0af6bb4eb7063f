"""Write the embedded base where the package looks for it: weights, tokenizer, config, model card."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from vocabulary import END, PAD

from lorica import durable
from lorica.models.causal_lm import CausalLM

FOLDER = Path(__file__).parent.parent / "src" / "lorica" / "models" / "embedded"
CARD = """---
license: apache-2.0
language: en
---
# The embedded base

A decoder of the Llama family with {parameters:,} parameters, bfloat16, for first steps and tests without a network.
It reads and continues Python and plain English about tables, lists and dates; it follows no instructions.

| | |
|---|---|
| shape | {layers} layers, width {d}, {heads} heads of {d_head}, feed-forward {d_ff}, vocabulary {vocab:,} (byte-level BPE), tied head |
| context | {context} tokens |
| trained on | {tokens:,} tokens in one pass: the standard library of Python {python} ({library:,} tokens in the stream), and generated plain language about tables, lists and dates ({plain:,}) |
| held-out loss | Python {python_loss:.3f}, plain language {plain_loss:.3f} nats a token, on documents never trained on |
| corpus | SHA-256 `{corpus_sha256}`, seed {seed} |
| made with | torch {torch}, transformers {transformers}; `python pretraining/pretrain.py` |

No SQL from the quickstart's generator and none of the phrasings of its test are in the corpus; a test checks both.
The corpus hash depends on the version of Python that made it.
"""


def write_base(model: CausalLM, tokenizer: Tokenizer, facts: dict[str, Any]) -> None:
    with durable.new_folder(FOLDER, replace=True) as folder:
        tensors = {name: p.detach() for name, p in model.named_parameters() if name != "lm_head.weight"}
        folder.write_tensors("model.safetensors", tensors, metadata={"format": "pt"})
        folder.write_text("tokenizer.json", tokenizer.to_str())
        folder.write_json("tokenizer_config.json", tokenizer_config())
        folder.write_text("config.json", model.config.to_json_string(use_diff=True))
        folder.write_text("README.md", card(model, facts))


def tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
    }


def card(model: CausalLM, facts: dict[str, Any]) -> str:
    shape = model.shape
    return CARD.format(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=shape.layers,
        d=shape.d,
        heads=shape.heads,
        d_head=shape.d_head,
        d_ff=shape.d_ff,
        vocab=shape.vocab,
        context=shape.max_length,
        tokens=facts["tokens"],
        python=".".join(map(str, sys.version_info[:3])),
        library=facts["stream_tokens"]["library"],
        plain=facts["stream_tokens"]["plain"],
        python_loss=facts["held_out_loss"]["python"],
        plain_loss=facts["held_out_loss"]["plain language"],
        corpus_sha256=facts["corpus_sha256"],
        seed=facts["seed"],
        torch=torch.__version__.split("+")[0],
        transformers=transformers.__version__,
    )


