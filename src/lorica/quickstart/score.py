"""How many questions are answered rightly: the generated SQL is run, and its result compared with the gold one's."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lorica.quickstart.databases import same_result
from lorica.quickstart.questions import Question

LONGEST_ANSWER = 64
"""Tokens; the longest gold query of the generator has fewer than 50."""
BATCH = 64


@dataclass(frozen=True)
class Answer:
    question: Question
    sql: str
    right: bool


@dataclass(frozen=True)
class Score:
    """Execution accuracy in [0, 1], and what was answered."""

    answers: tuple[Answer, ...]

    @property
    def execution_accuracy(self) -> float:
        return sum(answer.right for answer in self.answers) / len(self.answers)

    def by_kind(self) -> dict[str, tuple[int, int]]:
        """Right and asked for each kind of question."""
        asked = Counter(answer.question.kind for answer in self.answers)
        right = Counter(answer.question.kind for answer in self.answers if answer.right)
        return {kind: (right[kind], count) for kind, count in sorted(asked.items())}


def score(model: nn.Module, questions: Sequence[Question], told: Callable[[int], None] = lambda done: None) -> Score:
    """Greedy answers of a base, adapted or not, to all questions; `told` hears how many are done."""
    from lorica.models import generate

    tokenizer: Any = model.tokenizer
    answers: list[Answer] = []
    for start in range(0, len(questions), BATCH):
        part = questions[start : start + BATCH]
        prompts = [tokenizer.encode(question.prompt, add_special_tokens=False) for question in part]
        written = generate(model, prompts, LONGEST_ANSWER, stop_ids=[tokenizer.eos_token_id])
        texts = (tokenizer.decode(ids, skip_special_tokens=True) for ids in written)
        answers += [_judged(question, text) for question, text in zip(part, texts, strict=True)]
        told(len(answers))
    return Score(tuple(answers))


def _judged(question: Question, text: str) -> Answer:
    sql = text.strip()
    return Answer(question, sql, same_result(question.database(), question.sql, sql))
