"""A tiny Llama on the disk and some rows, made once for all journeys."""

import json
from pathlib import Path

import pytest
import torch

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base/`, `train.jsonl`, `eval.jsonl` and `count.yaml`, as a user's working directory."""
    folder = tmp_path_factory.mktemp("journey")
    make_base(folder / "base")
    rows = [{"prompt": f"after {WORDS[n]}: ", "completion": WORDS[n + 1]} for n in range(10)]
    write_rows(folder / "train.jsonl", rows)
    write_rows(folder / "eval.jsonl", rows[2:5])
    (folder / "count.yaml").write_text(RECIPE)
    return folder


RECIPE = """\
model: ./base
method: {name: lora, r: 4, alpha: 12, dropout: 0.1}
data: {train: train.jsonl, eval: eval.jsonl}
train: {steps: 12, rows_per_step: 10, learning_rate: 1e-2, evaluate_every: 4, checkpoint_every: 3, warmup: 2}
output: runs/count
"""


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_base(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(["<end>", *alphabet])}
    words = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    words.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        eos_token_id=0,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
