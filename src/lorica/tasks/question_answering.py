"""Extractive question answering: the answer to a question is a stretch of its context.

    [CLS] question [SEP] ... start ... end ... [SEP]        logits: one for each token to be the start, one the end
    loss = sum over rows of (-log softmax(start)[s] - log softmax(end)[e]) / 2        unit: rows

Padding takes no part in the softmax, so that a row's loss does not depend on the longest of its batch.  Devlin et al.
2019, arXiv:1810.04805, section 4.2; exact match and F1 as SQuAD's script has them (Rajpurkar et al. 2016,
arXiv:1606.05250), as shares of 1.
"""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lorica.data import Answered, DataConfig, Dataset, Example, Row, RowByRow, Teacher
from lorica.data.reading import kind_of
from lorica.errors import DataError, ModelError
from lorica.models.heads import Head, HeadKind
from lorica.tasks.contract import Draw, Reader, Task, require_rows_alone
from lorica.tasks.labels import value_of
from lorica.tasks.padded import Padded, answered, batches_by_length, padded, wide
from lorica.tasks.writing import FieldName, Writer, filled_text, ids_of, segments_of, was_cut

LONGEST_ANSWER = 30
"""Tokens, as in the script that came with BERT."""
ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True, eq=False)
class Passage(Answered):
    """`target` (2,) the places of the answer's first and last token; `offsets` (length, 2) the characters of each token
    of the context, (0, 0) for tokens of anything else; `answers`, any of which is right."""

    context: str = ""
    offsets: npt.NDArray[np.int32] | None = None
    answers: tuple[str, ...] = ()


class QuestionAnswering(Task):
    """question, context, answers: the fields of a row.  `answers` is the text, several, or SQuAD's {text: [...],
    answer_start: [...]}; without a start, the first place where the context has it counts."""

    name: ClassVar[str] = "question_answering"
    unit: ClassVar[str] = "rows"
    head_kind: ClassVar[HeadKind | None] = "question_answering"
    metrics: ClassVar[tuple[str, ...]] = ("exact_match", "f1")

    question: FieldName = "question"
    context: FieldName = "context"
    answers: FieldName = "answers"

    def head(self, seed: int = 0) -> Head:
        return Head(kind="question_answering", outputs=2, seed=seed)

    def lessons(self, config: DataConfig, reader: Reader) -> Teacher:
        require_rows_alone(config, self.name)
        writer = _with_offsets(Writer.of(config, reader))

        def read(row: Row, number: int) -> Example | str:
            context = filled_text(row.fields, self.context)
            answers = self._answers(row.fields, context)
            if not answers:
                return "no answer in its context"
            return self._passage(writer, row.fields, answers, number, row.origin)

        return RowByRow(self.name, read)

    def _answers(self, fields: Mapping[str, Any], context: str) -> list[tuple[str, int]]:
        """(text, first character) of each.  DataError where one is not in the context."""
        value = value_of(fields, self.answers)
        texts = value.get("text") if isinstance(value, Mapping) else value
        starts = value.get("answer_start") if isinstance(value, Mapping) else None
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) and text for text in texts):
            raise DataError(f"field {self.answers!r}: a text, a list of them, or SQuAD's text and answer_start")
        starts = [context.find(text) for text in texts] if starts is None else starts
        if not isinstance(starts, list | tuple) or len(starts) != len(texts):
            raise DataError(f"field '{self.answers}.answer_start': as many numbers as texts, not {kind_of(starts)}")
        for text, start in zip(texts, starts, strict=True):
            if not isinstance(start, int) or start < 0 or context[start : start + len(text)] != text:
                where = f" at {start}" if isinstance(start, int) and start >= 0 else ""
                raise DataError(f"field {self.answers!r}: {text[:60]!r} does not stand in the context{where}")
        return list(zip(texts, starts, strict=True))

    def _passage(
        self, writer: Writer, fields: Mapping[str, Any], answers: Sequence[tuple[str, int]], row: int, origin: str
    ) -> Passage | str:
        context = filled_text(fields, self.context)
        question = filled_text(fields, self.question)
        written = writer(question, context, cut="only_second", return_offsets_mapping=True)
        if isinstance(written, str):
            return written
        offsets = np.array(written["offset_mapping"], dtype=np.int32)
        offsets[[place != 1 for place in written.sequence_ids()]] = 0
        target = _places(offsets, *answers[0]) if answers else np.zeros(2, np.int64)
        if target is None:
            return "the answer was cut off"
        ids, texts = ids_of(written), tuple(text for text, _ in answers)
        none, cut = np.zeros(len(ids), np.bool_), was_cut(written)
        return Passage(ids, none, row, origin, target, segments_of(written), context, offsets, texts, cut=cut)

    def told(self, example: Any) -> str:
        return " or ".join(dict.fromkeys(example.answers))

    def batch(self, examples: Sequence[Any], *, device: torch.device, draw: Draw | None = None) -> Padded:
        return padded(sorted(examples, key=len), device=device, draw=draw)

    def units(self, batch: Padded) -> int:
        return len(batch.rows)

    def loss(self, model: nn.Module, batch: Padded) -> Tensor:
        return _losses(*_logits(model, batch), batch.target).sum()

    @torch.no_grad()
    def evaluate(self, model: nn.Module, dataset: Dataset, *, micro_batch_tokens: int) -> dict[str, float]:
        """`loss` per row, `exact_match`, `f1`, `rows`."""
        device = next(model.parameters()).device
        total, exact, overlap = 0.0, 0.0, 0.0
        for indices in batches_by_length(model, dataset, micro_batch_tokens):
            rows: list[Any] = [dataset[index] for index in indices]
            batch = padded(rows, device=device)
            start, end = _logits(model, batch)
            total += _losses(start, end, batch.target).sum().item()
            for row, first, last in zip(rows, start.cpu().numpy(), end.cpu().numpy(), strict=True):
                said = stretch(row, first, last)
                exact += max(exact_match(said, answer) for answer in row.answers)
                overlap += max(word_f1(said, answer) for answer in row.answers)
        rows_read = len(dataset)
        return {"loss": total / rows_read, "exact_match": exact / rows_read, "f1": overlap / rows_read} | {
            "rows": rows_read
        }

    @torch.no_grad()
    def answer(self, model: nn.Module, reader: Reader, fields: Mapping[str, Any]) -> str:
        writer = _with_offsets(Writer(reader.tokenizer, reader.limit, "error"))
        passage = self._passage(writer, fields, (), 0, "prompt")
        assert isinstance(passage, Passage)
        start, end = _logits(model, padded([passage], device=next(model.parameters()).device))
        return stretch(passage, start[0].cpu().numpy(), end[0].cpu().numpy())


def _with_offsets(writer: Writer) -> Writer:
    if not getattr(writer.tokenizer, "is_fast", False):
        raise ModelError("this base's tokenizer does not say where its tokens come from; give one with tokenizer.json")
    return writer


def _places(offsets: npt.NDArray[np.int32], text: str, start: int) -> npt.NDArray[np.int64] | None:
    """The first and the last token that hold characters of the answer; None where it was cut off."""
    end = start + len(text)
    held = np.flatnonzero((offsets[:, 1] > start) & (offsets[:, 0] < end) & (offsets[:, 1] > offsets[:, 0]))
    whole = len(held) and offsets[held[-1], 1] >= end
    return np.array([held[0], held[-1]], np.int64) if whole else None


def _logits(model: nn.Module, batch: Padded) -> tuple[Tensor, Tensor]:
    """(B, L) each, -inf at the padding."""
    output = answered(model, batch)
    padding = batch.inputs["attention_mask"] == 0
    start, end = (wide(logits).masked_fill(padding, -torch.inf) for logits in (output.start_logits, output.end_logits))
    return start, end


def _losses(start: Tensor, end: Tensor, target: Tensor) -> Tensor:
    entropy = nn.functional.cross_entropy
    return (entropy(start, target[:, 0], reduction="none") + entropy(end, target[:, 1], reduction="none")) / 2


def stretch(row: Passage, start: npt.NDArray[Any], end: npt.NDArray[Any]) -> str:
    """The likeliest stretch of at most 30 tokens of the context, as its characters stand there."""
    assert row.offsets is not None
    held = np.flatnonzero(row.offsets[:, 1] > row.offsets[:, 0])
    both = start[held][:, None] + end[held][None, :]
    allowed = np.tril(np.triu(np.ones_like(both, dtype=np.bool_)), LONGEST_ANSWER - 1)
    first, last = np.unravel_index(np.where(allowed, both, -np.inf).argmax(), both.shape)
    return row.context[row.offsets[held[first], 0] : row.offsets[held[last], 1]]


def normalised(text: str) -> str:
    """In lower case, without punctuation, articles and needless blanks."""
    bare = "".join(mark for mark in text.lower() if mark not in string.punctuation)
    return " ".join(ARTICLES.sub(" ", bare).split())


def exact_match(said: str, wanted: str) -> float:
    return float(normalised(said) == normalised(wanted))


def word_f1(said: str, wanted: str) -> float:
    """2 shared words / (words said + words wanted), words counted as often as they stand there."""
    given, gold = normalised(said).split(), normalised(wanted).split()
    if not given or not gold:
        return float(given == gold)
    return 2 * sum((Counter(given) & Counter(gold)).values()) / (len(given) + len(gold))
