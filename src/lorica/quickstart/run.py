"""The quickstart, start to end: questions, plan, the base's score, training, the adapter's score, a report.

It is an ordinary run of an ordinary recipe on ordinary files, all of which stay in its folder to be changed and rerun.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorica import api, durable, study
from lorica.errors import RequestError, RunError
from lorica.quickstart.questions import Question, generate
from lorica.quickstart.score import Score, score
from lorica.recipe import Recipe
from lorica.train import Run
from lorica.train.reporter import Quiet, Reporter

STEPS = 360
ROWS_PER_STEP = 32
TEST_QUESTIONS = 300
BASE_QUESTIONS = 100
"""The base answers a part of the test: it never writes SQL, and each answer runs to the longest length."""
SHOWN = 4
MARK = "quickstart.json"
WHY_THE_SHARE = "a base this small has narrow layers; on a 7B base the same rank trains 0.6 %"


@dataclass(frozen=True, kw_only=True)
class Quickstart:
    """What the quickstart found, and where it left the run."""

    base: Score
    adapter: Score
    path: str
    bytes: int
    trainable_percent: float
    seconds: float
    next_steps: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        return {
            "base": {"execution_accuracy": self.base.execution_accuracy},
            "adapter": {
                "execution_accuracy": self.adapter.execution_accuracy,
                "path": self.path,
                "bytes": self.bytes,
                "trainable_percent": self.trainable_percent,
            },
            "seconds": self.seconds,
        }

    def __str__(self) -> str:
        return "\n".join([*self._table(), "", *self._samples(), *self._facts(), "", *self._next()])

    def _table(self) -> list[str]:
        before, after = self.base.by_kind(), self.adapter.by_kind()
        lines = [f"{'execution accuracy':<22}{'base':>10}{'with adapter':>16}"]
        for kind, (right, asked) in after.items():
            was, of = before.get(kind, (0, 0))
            lines.append(f"  {kind:<20}{_percent(was, of):>10}{_percent(right, asked):>16}")
        overall = (self.base.execution_accuracy, self.adapter.execution_accuracy)
        return [*lines, f"  {'all':<20}{overall[0]:>10.1%}{overall[1]:>16.1%}"]

    def _samples(self) -> list[str]:
        lines: list[str] = []
        for sample in samples(self.base, self.adapter, SHOWN):
            lines += [sample.prompt, f"  base     {_one_line(sample.before)}", f"  adapter  {sample.after}", ""]
        return lines

    def _facts(self) -> list[str]:
        return [
            f"adapter: {self.path} ({self.bytes / 1e6:.2f} MB)",
            f"trained: {self.trainable_percent:.2f} % of the parameters ({WHY_THE_SHARE})",
            f"{self.seconds:.0f} seconds in all; tables, columns and phrasings of the test never occur in training",
        ]

    def _next(self) -> list[str]:
        return ["What to type next:", *(f"  {step}" for step in self.next_steps)]


def quickstart(
    output: str | Path = "runs/quickstart", *, seed: int = 0, reporter: Reporter | None = None
) -> Quickstart:
    """Teach the embedded base text-to-SQL; `output` becomes a run folder, in place of an earlier quickstart's."""
    began = time.monotonic()
    reporter, folder = reporter or Quiet(), Path(output)
    _make_room(folder)
    test = list(generate("test", TEST_QUESTIONS, seed))
    recipe = write_run(folder, test, seed)
    reporter.on_note(str(api.plan(recipe)))
    before = _score(recipe, None, test[:BASE_QUESTIONS], reporter, "the base answers")
    run = api.train(recipe, reporter=reporter)
    if run.adapter is None:
        raise RunError(f"the quickstart was interrupted at step {run.steps} of {run.total_steps}; start it again")
    after = _score(recipe, run.adapter, test, reporter, "the adapter answers")
    result = _result(recipe, run, before, after, began)
    durable.write_text(folder / "report.html", study.html(report(recipe, run, result)))
    durable.write_json(folder / MARK, result.to_dict())
    return result


def write_run(folder: Path, test: Sequence[Question], seed: int) -> Recipe:
    """The data files and the recipe."""
    training = generate("train", STEPS * ROWS_PER_STEP, seed)
    _write_rows(folder / "data" / "train.jsonl", training)
    _write_rows(folder / "data" / "test.jsonl", test)
    durable.write_json(folder / MARK, {"seconds": None})
    return Recipe(
        model={"source": "embedded"},
        method={"name": "lora", "r": 16, "alpha": 32, "target_modules": "all-linear"},
        data={"train": str(folder / "data" / "train.jsonl")},
        train={
            "epochs": 1,
            "rows_per_step": ROWS_PER_STEP,
            "learning_rate": 2.5e-3,
            "schedule": "linear",
            "warmup": 0.03,
            "min_lr_ratio": 0.0,
            "seed": seed,
        },
        output=str(folder),
    )


def _write_rows(path: Path, questions: Any) -> None:
    lines = (json.dumps(question.to_row(), ensure_ascii=False) for question in questions)
    durable.write_text(path, "".join(f"{line}\n" for line in lines))


def _make_room(folder: Path) -> None:
    """An earlier quickstart goes; anything else in the way is left alone."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / MARK).exists():
        raise RequestError(f"{folder} holds something that is no quickstart; give another folder with --output")
    durable.remove(folder)


def _score(recipe: Recipe, adapter: str | None, test: Sequence[Question], reporter: Reporter, what: str) -> Score:
    model = api.load_base(recipe.model.source)
    if adapter is not None:
        api.load(model, adapter, trainable=False)
    reporter.on_note(f"{what} {len(test)} held-out questions ...")
    found = score(model, test)
    reporter.on_note(f"{what} {found.execution_accuracy:.1%} of them rightly")
    return found


def _result(recipe: Recipe, run: Run, before: Score, after: Score, began: float) -> Quickstart:
    counted = api.plan(recipe).plan
    adapter = Path(str(run.adapter))
    return Quickstart(
        base=before,
        adapter=after,
        path=str(adapter),
        bytes=(adapter / "adapter_model.safetensors").stat().st_size,
        trainable_percent=100 * counted.trainable_parameters / counted.total_parameters,
        seconds=time.monotonic() - began,
        next_steps=next_steps(Path(recipe.output), adapter),
    )


def next_steps(folder: Path, adapter: Path) -> tuple[str, ...]:
    return (
        f"lorica chat {adapter}                    ask it something of your own",
        f"lorica inspect {adapter}                 what was trained, and how far each layer moved",
        f"lorica merge {adapter} --out merged      a plain checkpoint that transformers loads",
        "lorica data YOUR.jsonl --model embedded  look at a file of your own",
        f"lorica train {folder / 'recipe.yaml'} --set data.train=YOUR.jsonl --set output=runs/mine",
        f"open {folder / 'report.html'}",
    )


def samples(before: Score, after: Score, count: int) -> list[study.Sample]:
    """The first question of each kind that both have answered, right answers before wrong ones."""
    pairs = list(zip(before.answers, after.answers, strict=False))
    first = {pair[1].question.kind: pair for pair in reversed(pairs)}
    chosen = [*first.values(), *(pair for pair in pairs if not pair[1].right)]
    unique = list({id(pair[1]): pair for pair in chosen}.values())[:count]
    return [study.Sample(was.question.prompt.strip(), was.sql, now.sql, now.question.sql) for was, now in unique]


def report(recipe: Recipe, run: Run, result: Quickstart) -> study.Report:
    before, after = (100 * found.execution_accuracy for found in (result.base, result.adapter))
    measured = [study.Measure("execution accuracy, %", before, after)]
    for kind, (right, asked) in result.adapter.by_kind().items():
        was, of = result.base.by_kind().get(kind, (0, 0))
        measured.append(study.Measure(f"{kind}, %", 100 * was / max(of, 1), 100 * right / asked))
    return study.Report(
        title="Quickstart: a small base learns text-to-SQL",
        summary=f"{len(result.adapter.answers)} held-out questions, their SQL run in SQLite and its rows compared.",
        facts={
            "trained": f"{result.trainable_percent:.2f} % of the parameters ({WHY_THE_SHARE})",
            "adapter": f"{result.bytes / 1e6:.2f} MB",
            "time": f"{result.seconds:.0f} s",
        },
        history=run.history,
        table=tuple(measured),
        samples=tuple(samples(result.base, result.adapter, 12)),
        plan=str(api.plan(recipe)),
        settings=recipe.to_yaml(),
        next_steps=result.next_steps,
    )


def _percent(right: int, asked: int) -> str:
    return f"{right / asked:.1%}" if asked else "-"


def _one_line(text: str) -> str:
    shown = " ".join(text.split())
    return shown if len(shown) <= 90 else f"{shown[:87]}..."
