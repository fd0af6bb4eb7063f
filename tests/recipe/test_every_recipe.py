"""Every recipe of `recipes/` runs from end to end, with nothing replaced but the base, the rows and the folder."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import lorica
from benchmarks import tasks
from examples.sql_preferences import preferences
from lorica.api import data_report

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def jsonl(draw: Callable[[random.Random, Path], dict[str, Any]], rows: int = 30) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        drawn = [draw(random.Random(number), folder) for number in range(rows)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in drawn))
        return str(folder / "rows.jsonl")

    return write


def photos(folder: Path) -> str:
    for number in range(30):
        tasks.placed(random.Random(number), folder)
    return str(folder)


def headers(folder: Path) -> str:
    for number in range(12):
        (folder / f"part{number}.h").write_text(f"#define PART{number} {number}\nint part{number}(void);\n")
    return str(folder)


def preferred(draw: random.Random, folder: Path) -> dict[str, str]:
    return next(preferences(1, seed=draw.randrange(1 << 30)))


def counted(draw: random.Random, folder: Path) -> dict[str, str]:
    return {"prompt": f"after {draw.random()}:", "completion": " more"}


@dataclass(frozen=True)
class Case:
    """base: one of `benchmarks.tasks`, or the embedded one.  rows: writes the training data and gives its source.
    asked: a prompt, or a field of a row that is one."""

    base: str
    rows: Callable[[Path], str]
    asked: str | tuple[str, ...]


TEXT = ("text",)
CASES = {
    "c-headers": Case("embedded", headers, "int "),
    "caption-images": Case("blip", jsonl(tasks.shown), ("image", "prompt")),
    "classification": Case("bert", jsonl(tasks.topical), TEXT),
    "classify-minilm": Case("bert", jsonl(tasks.topical, rows=500), TEXT),
    "dpo": Case("embedded", jsonl(preferred), ("prompt",)),
    "image-classification": Case("vit", photos, ("image",)),
    "lora": Case("embedded", jsonl(counted), ("prompt",)),
    "multi-label": Case("bert", jsonl(tasks.topics_of), TEXT),
    "question-answering": Case("bert", jsonl(tasks.asked), ("question", "context")),
    "regression": Case("bert", jsonl(tasks.compared), ("text", "other")),
    "seq2seq": Case("t5", jsonl(tasks.reversed_words), ("source",)),
    "token-classification": Case("bert", jsonl(tasks.tagged), ("words",)),
}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_read_planned_trained_scored_and_asked(path: Path, tmp_path: Path):
    case = CASES[path.stem]
    (tmp_path / "rows").mkdir()
    source = case.rows(tmp_path / "rows")
    base = "embedded" if case.base == "embedded" else str(tasks.make_base(tmp_path / "base", case.base))
    changes = [f"model={base}", f"data.train={source}", f"output={tmp_path}/run"]
    recipe = lorica.Recipe.load(path, [*changes, *(["data.max_length=32"] if case.base == "bert" else [])])
    planned = lorica.plan(recipe).to_dict()
    report = data_report(recipe)
    run = lorica.train(recipe)
    assert (run.status, run.steps) == ("finished", run.total_steps)
    assert run.eval is not None
    assert report.eval is not None
    assert report.task == recipe.task.name
    assert lorica.inspect(run.adapter).trained_parameters == planned["trainable_parameters"]
    found = lorica.evaluate(run.adapter, source).metrics
    assert found["loss"] == pytest.approx(found["loss"])
    assert {name for name in recipe.task.metrics if name in run.eval} <= set(found)
    assert lorica.generate(run.adapter, prompt_of(case, source), **brief(case)).text is not None


def prompt_of(case: Case, source: str) -> str:
    if isinstance(case.asked, str):
        return case.asked
    if case.asked == ("image",):
        return str(next(Path(source).rglob("*.png")))
    row = json.loads(Path(source).read_text().splitlines()[0])
    return row[case.asked[0]] if case.asked == TEXT else json.dumps({name: row[name] for name in case.asked})


def brief(case: Case) -> dict[str, int]:
    return {"max_tokens": 4} if case.base in ("embedded", "blip", "t5") else {}
