"""Track `quickstart`: the embedded base learns text-to-SQL; its queries are run, and their results compared.

Names and wordings of the validation and of the test questions never occur in training; the two are drawn from one
grammar with seeds of their own, and no question is in both.  All arms and seeds learn the same rows, in the order of
the seed.
"""

from functools import cached_property
from itertools import islice
from typing import Any

import lorica
from benchmarks.evidence.arms import WITHOUT_HEAD, Arm, settings
from benchmarks.evidence.docstrings import count, digest
from benchmarks.evidence.track import Outcome, Part, Track
from lorica.data import Dataset
from lorica.quickstart.questions import Question, generate
from lorica.quickstart.score import score
from lorica.tasks import TASKS
from lorica.train import TrainConfig, fit

SEEDS = {"train": 7000, "validation": 7001, "test": 7002}
ROWS_PER_STEP = 16


class Questions(Track):
    name, metric, unit = "quickstart", "execution accuracy", "steps"

    def __init__(self, *, lengths: tuple[int, ...] = (120,), validation: int = 150, test: int = 300) -> None:
        self.arms, self.lengths = WITHOUT_HEAD, lengths
        held = list(generate("test", validation, SEEDS["validation"]))
        known = {question.prompt for question in held}
        fresh = (q for q in generate("test", test + validation, SEEDS["test"]) if q.prompt not in known)
        self.parts: dict[str, list[Question]] = {"validation": held, "test": [*islice(fresh, test)]}

    def facts(self) -> dict[str, Any]:
        asked = {part: [question.to_row() for question in questions] for part, questions in self.parts.items()}
        return {
            "base": "the embedded base, bfloat16; it has no biases, which BitFit would train, and no head",
            "questions": {part: len(questions) for part, questions in self.parts.items()},
            "rows_per_step": ROWS_PER_STEP,
            "digest": digest({**asked, "arms": settings(self.arms), "train": [SEEDS, self.lengths, ROWS_PER_STEP]}),
        }

    @cached_property
    def model(self) -> Any:
        return lorica.load_base("embedded")

    @cached_property
    def encoded(self) -> Dataset:
        from lorica.api.lessons import from_anything

        rows = [question.to_row() for question in generate("train", max(self.lengths) * ROWS_PER_STEP, SEEDS["train"])]
        return from_anything(self.model, rows)

    def run(self, arm: Arm, *, rate: float, seed: int, length: int, part: Part) -> Outcome:
        model, asked = self.model, self.parts[part]
        if arm.method is None:
            return Outcome(score(model, asked).execution_accuracy, 0, count(model))
        attached = lorica.attach(model, arm.method, seed=seed)
        try:
            training = {"steps": length, "rows_per_step": ROWS_PER_STEP, "learning_rate": rate, "seed": seed}
            config = TrainConfig(schedule="linear", warmup=0.03, min_lr_ratio=0.0, **training)
            self.whole(fit(attached, TASKS["causal_lm"], self.encoded, None, config))
            right = score(attached.eval().model, asked).execution_accuracy
            return Outcome(right, attached.trainable_parameters, count(model))
        finally:
            attached.detach()
