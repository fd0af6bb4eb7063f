"""Pretrain the embedded base: `python pretraining/pretrain.py --work build/pretraining`.

Three stages: the language of the standard library and of tables; then names of many spellings, and of any, so that a
name is copied whatever tokens it has.  Seeded and resumable: run the same command again and it goes on from its newest
checkpoint.  When it is done it writes `src/lorica/models/embedded/`: bfloat16 weights, tokenizer, config, model card.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from card import write_base
from corpus import corpus_hash, documents, is_held_out
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaConfig
from vocabulary import END, PAD, VOCABULARY, train

from lorica.kernels import head_cross_entropy
from lorica.models.causal_lm import CausalLM
from lorica.models.layout import Layout
from lorica.quickstart.words import Spelling
from lorica.train import checkpoint

TOKENS_PER_STEP = 8192
WINDOW, LONG_WINDOW, LONG_FROM = 256, 512, 0.9
WARMUP = 0.02


class Stage(NamedTuple):
    """tokens to train on, the share of them that is plain language, and how the names in it are spelled."""

    name: str
    tokens: float
    plain_share: float
    spelling: Spelling
    learning_rate: float


STAGES = (
    Stage("language", 8.6e6, 0.62, "syllables", 3e-3),
    Stage("names", 2.4e6, 0.85, "words", 1.5e-3),
    Stage("spellings", 2.4e6, 0.85, "pieces", 1.5e-3),
)


def settings() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for tokens, checkpoints and progress")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    chosen = settings()
    torch.manual_seed(chosen.seed)
    tokenizer, facts, start = None, [], None
    for number, stage in enumerate(STAGES):
        texts = Texts.prepared(chosen.work / stage.name, stage, chosen.seed + number, tokenizer)
        tokenizer = texts.tokenizer
        run = Pretraining(new_model(tokenizer, start), texts.stream, stage, chosen.work / stage.name)
        run.resume()
        run.train()
        start = run.masters
        facts.append({**texts.facts, "stage": stage.name, "tokens": run.total * TOKENS_PER_STEP})
    losses = {name: evaluate(run.model, tokens) for name, tokens in texts.held_out.items()}
    write_base(run.model, tokenizer, facts, losses)


def new_model(tokenizer: Tokenizer, start: dict[str, Tensor] | None) -> CausalLM:
    model = CausalLM(base_config(tokenizer))
    initialise(model)
    if start is not None:
        model.load_state_dict({**start, "lm_head.weight": start["model.embed_tokens.weight"]})
    return model


def base_config(tokenizer: Tokenizer) -> LlamaConfig:
    end = tokenizer.token_to_id(END)
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=320,
        intermediate_size=640,
        num_hidden_layers=6,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=LONG_WINDOW,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=tokenizer.token_to_id(PAD),
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )


def initialise(model: CausalLM) -> None:
    """Normal 0.02 for embeddings, 1/sqrt(d_in) for linears, the two that write to the residual divided by its depth."""
    depth = math.sqrt(2 * model.shape.layers)
    for name, parameter in model.named_parameters():
        if "embed" in name:
            parameter.data.normal_(0, 0.02)
        elif parameter.dim() == 2:
            std = parameter.shape[1] ** -0.5
            parameter.data.normal_(0, std / depth if name.endswith(("o_proj.weight", "down_proj.weight")) else std)


class Texts(NamedTuple):
    """What a stage reads: tokenizer, the stream of training tokens, held-out tokens by source, facts for the card."""

    tokenizer: Tokenizer
    stream: np.ndarray
    held_out: dict[str, np.ndarray]
    facts: dict[str, Any]

    @classmethod
    def prepared(cls, work: Path, stage: Stage, seed: int, tokenizer: Tokenizer | None) -> "Texts":
        """Made once and kept in `work` for a run that is continued."""
        if not (work / "facts.json").exists():
            make_tokens(work, stage, seed, tokenizer)
        stream, library, plain = (np.load(work / f"{name}.npy") for name in ("stream", "held_library", "held_plain"))
        held_out = {"python": library, "plain language": plain}
        facts = json.loads((work / "facts.json").read_text())
        return cls(Tokenizer.from_file(str(work / "tokenizer.json")), stream, held_out, facts)


def make_tokens(work: Path, stage: Stage, seed: int, tokenizer: Tokenizer | None) -> None:
    work.mkdir(parents=True, exist_ok=True)
    plain_tokens = stage.tokens * stage.plain_share
    library, plain = documents(seed, int(plain_tokens * 3.2), stage.spelling)
    tokenizer = tokenizer or train([*library[::3], *plain[: len(plain) // 4]])
    end = tokenizer.token_to_id(END)
    encoded = {name: encode(tokenizer, texts, end) for name, texts in (("library", library), ("plain", plain))}
    stream, counts = mixed(encoded, stage, np.random.Generator(np.random.Philox(seed)))
    np.save(work / "stream.npy", stream)
    for name, parts in encoded.items():
        np.save(work / f"held_{name}.npy", np.concatenate([ids for ids, held in parts if held])[: 64 * 1024])
    tokenizer.save(str(work / "tokenizer.json"))
    described = {"corpus_sha256": corpus_hash([*library, *plain]), "stream_tokens": counts, "seed": seed}
    (work / "facts.json").write_text(json.dumps(described))


def mixed(
    encoded: dict[str, list[tuple[np.ndarray, bool]]], stage: Stage, random: np.random.Generator
) -> tuple[np.ndarray, dict[str, int]]:
    """Whole library files are long, so they are cut into pieces of 512 tokens that mix well with the short texts.

    A stage that reads a smaller share of the library than there is reads its files in a random order up to that share.
    """
    parts = [(name, ids) for name in encoded for ids, held in encoded[name] if not held]
    order = random.permutation(len(parts))
    wanted = {"library": stage.tokens * (1 - stage.plain_share) * 1.1, "plain": math.inf}
    counts, pieces = {"library": 0, "plain": 0}, []
    for index in order:
        name, ids = parts[index]
        if counts[name] < wanted[name]:
            counts[name] += len(ids)
            pieces += np.array_split(ids, max(1, len(ids) // 512))
    return np.concatenate([pieces[i] for i in random.permutation(len(pieces))]), counts


def encode(tokenizer: Tokenizer, texts: list[str], end: int) -> list[tuple[np.ndarray, bool]]:
    encoded = tokenizer.encode_batch(texts)
    return [
        (np.array([*item.ids, end], dtype=np.uint16), is_held_out(text))
        for text, item in zip(texts, encoded, strict=True)
    ]


class Pretraining:
    """bfloat16 weights for the products, float32 masters for the optimisers: Muon for matrices, AdamW for the rest."""

    def __init__(self, model: CausalLM, stream: np.ndarray, stage: Stage, work: Path) -> None:
        self.masters = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        self.model = model.to(torch.bfloat16)
        self.live = dict(model.named_parameters())
        self.stream, self.stage, self.work, self.step = stream, stage, work, 0
        self.total = min(int(stage.tokens), len(stream) - LONG_WINDOW) // TOKENS_PER_STEP
        matrices = [self.masters[name] for name in self.masters if "layers" in name and self.masters[name].dim() == 2]
        rest = [master for master in self.masters.values() if not any(master is matrix for matrix in matrices)]
        rate = stage.learning_rate
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        ]

    def train(self) -> None:
        started, first = time.time(), self.step
        while self.step < self.total:
            loss, seconds = self.one_step()
            if self.step % 5 == 0:
                left = (time.time() - started) / (self.step - first) * (self.total - self.step)
                self.report(step=self.step, total=self.total, loss=loss, seconds=seconds, seconds_left=left)
            if self.step % 100 == 0 or self.step == self.total:
                self.save()

    def one_step(self) -> tuple[float, float]:
        began = time.time()
        window = WINDOW if self.step < LONG_FROM * self.total else LONG_WINDOW
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.stage.learning_rate * self.share()
        loss = self.loss(self.tokens(self.step, window), window)
        loss.backward()
        for name, parameter in self.live.items():
            assert parameter.grad is not None
            self.masters[name].grad = parameter.grad.float()
        torch.nn.utils.clip_grad_norm_(self.masters.values(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        with torch.no_grad():
            for name, parameter in self.live.items():
                parameter.copy_(self.masters[name])
                parameter.grad = None
        self.step += 1
        return float(loss.detach()), time.time() - began

    def share(self) -> float:
        """Linear warm-up, then linear to zero."""
        done = self.step / self.total
        return min((self.step + 1) / (WARMUP * self.total), (1 - done) / (1 - WARMUP))

    def tokens(self, step: int, window: int) -> Tensor:
        start = step * TOKENS_PER_STEP
        block = self.stream[start : start + TOKENS_PER_STEP + 1].astype(np.int64)
        rows = TOKENS_PER_STEP // window
        return torch.from_numpy(np.stack([block[i * window : (i + 1) * window + 1] for i in range(rows)]))

    def loss(self, rows: Tensor, window: int) -> Tensor:
        inputs, labels = rows[:, :-1].flatten(), rows[:, 1:].flatten()
        hidden = self.model.hidden(inputs, Layout.of([window] * len(rows)))
        logits = self.model.lm_head(hidden)
        return torch.nn.functional.cross_entropy(logits.float(), labels)

    def report(self, **line: float) -> None:
        with (self.work / "progress.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def save(self) -> None:
        states = {
            f"{index}.{number}.{key}": value
            for index, optimizer in enumerate(self.optimizers)
            for number, state in optimizer.state_dict()["state"].items()
            for key, value in state.items()
        }
        tensors = {"masters": self.masters, "optimizers": states}
        checkpoint.save(self.work / "checkpoints", self.step, tensors, {"step": self.step}, keep=2)

    def resume(self) -> None:
        found, _ = checkpoint.newest(self.work / "checkpoints")
        if found is None:
            return
        self.step = found.step
        for name, master in self.masters.items():
            master.copy_(found.tensors["masters"][name])
            self.live[name].data.copy_(master)
        for index, optimizer in enumerate(self.optimizers):
            optimizer.load_state_dict({**optimizer.state_dict(), "state": _nested(found.tensors["optimizers"], index)})


def _nested(flat: dict[str, Tensor], index: int) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in flat.items():
        optimizer, number, key = name.split(".", 2)
        if int(optimizer) == index:
            state.setdefault(int(number), {})[key] = value
    return state


@torch.no_grad()
def evaluate(model: CausalLM, tokens: np.ndarray) -> float:
    """Mean loss per token (nats) of held-out text in windows of 256."""
    rows = torch.from_numpy(tokens[: len(tokens) // (WINDOW + 1) * (WINDOW + 1)].astype(np.int64)).view(-1, WINDOW + 1)
    total = 0.0
    for part in rows.split(32):
        hidden = model.hidden(part[:, :-1].flatten(), Layout.of([WINDOW] * len(part)))
        total += float(head_cross_entropy(hidden, model.lm_head, part[:, 1:].flatten()))
    return total / (len(rows) * WINDOW)


if __name__ == "__main__":
    main()
