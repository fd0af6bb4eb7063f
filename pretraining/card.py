"""Write the embedded base where the package looks for it: weights, tokenizer, config, model card."""

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
STAGE = (
    "| stage `{stage}` | {tokens:,} tokens in one pass, of a stream of {library:,} of Python and {plain:,} of "
    "plain language; corpus SHA-256 `{corpus_sha256}`, seed {seed} |"
)
CARD = """---
license: apache-2.0
language: en
---
# The embedded base

A decoder of the Llama family with {parameters:,} parameters, bfloat16, for first steps and tests without a network.
It reads and continues Python and plain English about tables, lists and dates; it follows no instructions.

| | |
|---|---|
| shape | {layers} layers, width {d}, {heads} heads of {d_head}, feed-forward {d_ff}, tied head |
| vocabulary | {vocab:,} (byte-level BPE) |
| context | {context} tokens |
| trained on | the standard library of Python {python}, and generated plain language about tables, lists and dates |
{stages}
| held-out loss | Python {python_loss:.3f}, plain language {plain_loss:.3f} nats a token, on documents never read |
| made with | torch {torch}, transformers {transformers}; `python pretraining/pretrain.py` |

No SQL from the quickstart's generator and none of the phrasings of its test are in the corpus; a test checks both.
The corpus hash depends on the version of Python that made it.
"""


def write_base(model: CausalLM, tokenizer: Tokenizer, stages: list[dict[str, Any]], losses: dict[str, float]) -> None:
    with durable.new_folder(FOLDER, replace=True) as folder:
        tensors = {name: p.detach() for name, p in model.named_parameters() if name != "lm_head.weight"}
        folder.write_tensors("model.safetensors", tensors, metadata={"format": "pt"})
        folder.write_text("tokenizer.json", tokenizer.to_str())
        folder.write_json("tokenizer_config.json", tokenizer_config())
        folder.write_text("config.json", model.config.to_json_string(use_diff=True))
        folder.write_text("README.md", card(model, stages, losses))


def tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
    }


def card(model: CausalLM, stages: list[dict[str, Any]], losses: dict[str, float]) -> str:
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
        stages="\n".join(STAGE.format(**stage, **stage["stream_tokens"]) for stage in stages),
        python=".".join(map(str, sys.version_info[:3])),
        python_loss=losses["python"],
        plain_loss=losses["plain language"],
        torch=torch.__version__.split("+")[0],
        transformers=transformers.__version__,
    )
