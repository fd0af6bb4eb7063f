"""Four skills on one base: `python -m benchmarks.skills [--rows N] [--served URL]`.

SQL, JSON extraction, dates and C comments are each trained on the embedded base by a recipe, then every adapter, and
the base, answers the test of every skill; then blends of two answer the tests of both.  What was stopped goes on: runs
and answers are kept in runs/skills/.  Writes benchmarks/results/skills.json and docs/skills.md.

--served  then asks a running server the same, all adapters at once, with the OpenAI client; its key is read from
          LORICA_API_KEY.  The server holds the four adapters under the names of the skills, in float32:
          lorica serve --model embedded --dtype float32 --adapter sql=runs/skills/sql-.../run/adapter ...
"""

import hashlib
import json
import os
import random
import time
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import lorica
from benchmarks import skills_page
from benchmarks.evidence.ledger import Ledger
from benchmarks.machine import machine
from benchmarks.skill_data import SKILLS, Row, Skill
from lorica.train.records import StepRecord
from lorica.train.reporter import Quiet

ROOT = Path(__file__).parent.parent
RESULT, PAGE = ROOT / "benchmarks" / "results" / "skills.json", ROOT / "docs" / "skills.md"
CLAIM = (
    "served together, each of four skills scores on its own task as it does offline, and near the base on the others; "
    "a blend of two keeps most of both, or the table says how much it loses"
)
SKILLED = Path("runs") / "skills"
SEED = 0
ROWS_PER_STEP = 32
TEST_ROWS = 120
LONGEST_ANSWER = 96
"""Tokens; the longest right answer of a test has fewer than 80."""
BATCH = 60
DTYPE = "float32"
"""Of the base that answers: sums in float32 in another order seldom choose another token, in bfloat16 they do."""
WEIGHTS = ((0.5, 0.5), (0.7, 0.3), (1.0, 1.0))
SERVED_WEIGHTS = ((0.7, 0.3),)
CLIENTS = 16
BASE = "base"
Mix = Mapping[str, float]


def told(line: str) -> None:
    print(line, flush=True)


def recipe_of(skill: Skill, folder: Path) -> lorica.Recipe:
    """The quickstart's recipe, with the steps of the skill."""
    return lorica.Recipe(
        model={"source": "embedded"},
        method={"name": "lora", "r": 16, "alpha": 32, "target_modules": "all-linear"},
        data={"train": str(folder / "train.jsonl")},
        train={
            "epochs": 1,
            "rows_per_step": ROWS_PER_STEP,
            "learning_rate": 2.5e-3,
            "schedule": "linear",
            "warmup": 0.03,
            "min_lr_ratio": 0.0,
            "checkpoint_every": 60,
            "seed": SEED,
        },
        output=str(folder / "run"),
    )


class Paced(Quiet):
    """A line every twenty steps."""

    def on_step(self, record: StepRecord) -> None:
        if record.step % 20 == 0:
            told(f"  step {record.step}, loss {record.loss:.3f}, {record.seconds:.0f} s")


@dataclass(frozen=True)
class Asked:
    """One row of one test, and whom it is put to."""

    who: str
    task: str
    row: Row
    mix: Mix


@dataclass
class Study:
    """Runs and answers of the four skills, and where they are kept."""

    count: int

    @cached_property
    def tests(self) -> dict[str, list[Row]]:
        return {skill.name: list(skill.rows("test", self.count, SEED)) for skill in SKILLS}

    @cached_property
    def trainings(self) -> dict[str, list[Row]]:
        return {skill.name: list(skill.rows("train", skill.steps * ROWS_PER_STEP, SEED)) for skill in SKILLS}

    @cached_property
    def folders(self) -> dict[str, Path]:
        """By what is taught: other rows are another run."""
        return {skill.name: SKILLED / f"{skill.name}-{self._digest(skill)}" for skill in SKILLS}

    @property
    def digest(self) -> str:
        """Of all four runs."""
        return hashlib.sha256(" ".join(folder.name for folder in self.folders.values()).encode()).hexdigest()[:12]

    def _digest(self, skill: Skill) -> str:
        taught = [row.to_row() for row in self.trainings[skill.name]]
        said = json.dumps([taught, recipe_of(skill, Path(skill.name)).to_dict()], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()[:12]

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger.at(SKILLED / "done.jsonl")

    @cached_property
    def bank(self) -> lorica.Bank:
        bank = lorica.Bank(lorica.load_base("embedded", dtype=DTYPE))
        for skill in SKILLS:
            bank.add(skill.name, self.trained(skill)["adapter"])
        return bank

    def trained(self, skill: Skill) -> dict[str, Any]:
        return self.ledger.get(f"train {self.folders[skill.name].name}", lambda: self._train(skill))

    def _train(self, skill: Skill) -> dict[str, Any]:
        folder = self.folders[skill.name]
        folder.mkdir(parents=True, exist_ok=True)
        rows = (json.dumps(row.to_row()) for row in self.trainings[skill.name])
        (folder / "train.jsonl").write_text("".join(f"{row}\n" for row in rows))
        told(f"train {skill.name}")
        resume = (folder / "run" / "checkpoints").exists()
        run = lorica.train(recipe_of(skill, folder), resume=resume, reporter=Paced())
        if run.adapter is None:
            raise SystemExit(f"{skill.name} was interrupted at step {run.steps} of {run.total_steps}; start it again")
        return {**run.to_dict(), "bytes": (Path(run.adapter) / "adapter_model.safetensors").stat().st_size}

    def answers(self, task: str, mix: Mix) -> list[str]:
        """What a mix of adapters, or the base, says to every row of a test."""
        rows = hashlib.sha256(repr(self.tests[task]).encode()).hexdigest()[:12]
        key = f"{named(mix)} on {rows} by {[self.folders[name].name for name in mix]}"
        return self.ledger.get(key, lambda: {"said": self._answers(task, mix)})["said"]

    def _answers(self, task: str, mix: Mix) -> list[str]:
        from lorica.models import generate

        tokenizer: Any = self.bank.model.tokenizer
        ids = [tokenizer.encode(row.prompt, add_special_tokens=False) for row in self.tests[task]]
        said: list[str] = []
        began = time.monotonic()
        with self.bank.use(dict(mix) or None) as model:
            for start in range(0, len(ids), BATCH):
                written = generate(model, ids[start : start + BATCH], LONGEST_ANSWER)
                said += [tokenizer.decode(each, skip_special_tokens=True) for each in written]
        told(f"{named(mix)} on {task}: {self.right(task, said):.1%}, {time.monotonic() - began:.0f} s")
        return said

    def right(self, task: str, said: Sequence[str]) -> float:
        rows = self.tests[task]
        return sum(row.right(text) for row, text in zip(rows, said, strict=True)) / len(rows)

    def score(self, task: str, mix: Mix) -> float:
        return self.right(task, self.answers(task, mix))


def named(mix: Mix) -> str:
    if not mix:
        return BASE
    return " + ".join(name if weight == 1 and len(mix) == 1 else f"{weight} {name}" for name, weight in mix.items())


def matrix(study: Study) -> dict[str, dict[str, float]]:
    """Scores by adapter, then task."""
    return {named(mix): {skill.name: study.score(skill.name, mix) for skill in SKILLS} for mix in alone()}


def alone() -> list[Mix]:
    return [{}, *({skill.name: 1.0} for skill in SKILLS)]


def blends(study: Study) -> list[dict[str, Any]]:
    """Every two adapters in every weighting: their scores on both tasks, and the share of each adapter's own."""
    found = []
    for mix in mixes(WEIGHTS):
        scores = {name: study.score(name, mix) for name in mix}
        kept = {name: scores[name] / max(study.score(name, {name: 1.0}), 1 / study.count) for name in mix}
        found.append({"weights": mix, "scores": scores, "kept": kept})
    return found


def mixes(weightings: Sequence[tuple[float, float]]) -> list[Mix]:
    pairs = combinations([skill.name for skill in SKILLS], 2)
    return [dict(zip(pair, weights, strict=True)) for pair in pairs for weights in weightings]


def served(study: Study, url: str) -> dict[str, Any]:
    """The matrix and the blends through a server, requests of all adapters in one drawn order, sixteen at a time.

    What was asked before it was stopped is not asked again; the seconds are of the rest.
    """
    import openai

    client = openai.OpenAI(base_url=f"{url.rstrip('/')}/v1", api_key=os.environ.get("LORICA_API_KEY", "-"), timeout=600)
    base = next(model.id for model in client.models.list() if getattr(model, "parent", None) is None)
    pairs = [(mix, skill.name) for mix in alone() for skill in SKILLS]
    pairs += [(mix, name) for mix in mixes(SERVED_WEIGHTS) for name in mix]
    asked = [Asked(named(mix), task, row, mix) for mix, task in pairs for row in study.tests[task]]
    order = random.Random(SEED).sample(range(len(asked)), len(asked))
    keys = [f"served {one.row.prompt!r} to {one.who} of {study.digest}" for one in asked]
    left = [number for number in order if keys[number] not in study.ledger.done]
    began = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as clients:
        for number, reply in zip(left, clients.map(lambda n: _ask(client, base, asked[n]), left), strict=True):
            study.ledger.get(keys[number], lambda reply=reply: reply)
    seconds = time.monotonic() - began
    said: dict[tuple[str, str], list[str]] = {}
    for one, key in zip(asked, keys, strict=True):
        said.setdefault((one.who, one.task), []).append(study.ledger.done[key]["text"])
    differing = {
        f"{named(mix)} on {task}": count
        for mix, task in pairs
        if (count := sum(a != b for a, b in zip(study.answers(task, mix), said[named(mix), task], strict=True)))
    }
    return {
        "scores": {f"{who} on {task}": study.right(task, texts) for (who, task), texts in said.items()},
        "offline": {f"{named(mix)} on {task}": study.score(task, mix) for mix, task in pairs},
        "requests": len(asked),
        "clients": CLIENTS,
        "answers_that_differ": differing,
        "seconds": round(seconds, 1),
        "tokens_in_these_seconds": sum(study.ledger.done[keys[number]]["tokens"] for number in left),
    }


def _ask(client: Any, base: str, asked: Asked) -> dict[str, Any]:
    single = [*asked.mix] == [asked.who]
    blend = {} if single or not asked.mix else {"adapters": _weighted(asked.mix)}
    done = client.completions.create(
        model=asked.who if single else base,
        prompt=asked.row.prompt,
        max_tokens=LONGEST_ANSWER,
        temperature=0.0,
        extra_body=blend,
    )
    return {"text": done.choices[0].text, "tokens": done.usage.completion_tokens}


def _weighted(mix: Mix) -> list[dict[str, Any]]:
    return [{"name": name, "weight": weight} for name, weight in mix.items()]


def found_of(study: Study) -> dict[str, Any]:
    skills = {
        skill.name: {
            **{key: value for key, value in asdict(skill).items() if key != "rows"},
            "train_rows": skill.steps * ROWS_PER_STEP,
            "seconds": round(study.trained(skill)["seconds"], 1),
            "bytes": study.trained(skill)["bytes"],
            "example": study.tests[skill.name][0].to_row(),
        }
        for skill in SKILLS
    }
    return {
        "claim": CLAIM,
        "base": "the embedded base, trained on in bfloat16, answering in float32, greedily",
        "test_rows": study.count,
        "skills": skills,
        "matrix": matrix(study),
        "blends": blends(study),
        "machine": machine(),
    }


def write(found: Mapping[str, Any]) -> None:
    """The result, and the page from it."""
    text = json.dumps(found, indent=2) + "\n"
    for path, content in ((RESULT, text), (PAGE, skills_page.page(json.loads(text)))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def main() -> None:
    parser = ArgumentParser(description="four skills on one base")
    parser.add_argument("--rows", type=int, default=TEST_ROWS, help="of each test")
    parser.add_argument("--served", metavar="URL", help="of a running server, which is then asked the same")
    chosen = parser.parse_args()
    study = Study(chosen.rows)
    found = found_of(study)
    before = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    if chosen.served:
        found["served"] = served(study, chosen.served)
    elif before.get("matrix") == found["matrix"] and "served" in before:
        found["served"] = before["served"]
    write(found)
    print(skills_page.page(found))


if __name__ == "__main__":
    main()
