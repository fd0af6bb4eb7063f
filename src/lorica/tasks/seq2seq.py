"""Sequence to sequence: a target text is written from a source text, by T5, BART and their kin.

source    s s s s </s>                     read by the encoder as the base's tokenizer writes it
target    t t t </s>                       label tokens; the decoder reads them moved on by one, as the base does it
loss      = sum over label tokens of -log softmax(logits)[token]        unit: label tokens

Sutskever et al. 2014, arXiv:1409.3215; T5: Raffel et al. 2020, arXiv:1910.10683, section 2.4.  ROUGE: Lin 2004,
W04-1013; BLEU: Papineni et al. 2002, P02-1040, as sacrebleu has it (Post 2018, arXiv:1804.08771), of 100.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from lorica.data import Answered, DataConfig, Dataset, Example, Row, RowByRow, Teacher
from lorica.errors import DataError, ModelError, RequestError
from lorica.models.generate import generate, own_stop_ids
from lorica.models.walking import context_limit
from lorica.tasks.contract import Draw, Reader, Task, require_rows_alone
from lorica.tasks.padded import NO_TARGET, Padded, answered, batches_by_length, learned_loss, padded
from lorica.tasks.writing import FieldName, Writer, filled_text, ids_of, was_cut

Measure = Literal["exact_match", "rouge", "bleu"]
PACKAGES = {"rouge": ("rouge_score", "rouge-score"), "bleu": ("sacrebleu", "sacrebleu")}


@dataclass(frozen=True, eq=False)
class Written(Answered):
    """`input_ids` the source, `target` (labels,) int64 the tokens to write, `text` what they say, `tokenizer` that of
    the base, which reads what is generated."""

    text: str = ""
    tokenizer: Any = None

    def __len__(self) -> int:
        """What a batch holds of it: the encoder's tokens and the decoder's."""
        return len(self.input_ids) + len(self.target)

    @property
    def units(self) -> int:
        return len(self.target)

    def content(self) -> Iterator[bytes]:
        yield from super().content()
        yield len(self.target).to_bytes(8, "little")


class SequenceToSequence(Task):
    """source, target: the fields of a row.  prefix: written before every source, as T5 was taught its tasks.

    measures    what answers are compared by: exact_match, rouge, bleu; the last two read packages of their own
    scored      evaluation rows that are answered, evenly spread; the loss is of all
    max_tokens  of an answer
    """

    name: ClassVar[str] = "seq2seq"
    unit: ClassVar[str] = "label tokens"
    metrics: ClassVar[tuple[str, ...]] = ("exact_match", "rouge1", "rouge2", "rougeL", "bleu")

    source: FieldName = "source"
    target: FieldName = "target"
    prefix: str = ""
    measures: tuple[Measure, ...] = ("exact_match",)
    scored: Annotated[int, Field(ge=1)] = 64
    max_tokens: Annotated[int, Field(ge=1)] = 128

    @property
    def writes_on(self) -> bool:
        return False

    @property
    def prompt_field(self) -> str | None:
        return self.source

    def lessons(self, config: DataConfig, reader: Reader) -> Teacher:
        require_rows_alone(config, self.name)
        require_packages(self.measures)
        if not getattr(reader.config, "is_encoder_decoder", False):
            kind = getattr(reader.config, "model_type", "such")
            raise ModelError(f"{self.name}: a {kind} base has no encoder; use T5, BART or their kin, or causal_lm")
        writer = Writer.of(config, reader)

        def read(row: Row, number: int) -> Example | str:
            return self._example(writer, row, number)

        return RowByRow(self.name, read)

    def _example(self, writer: Writer, row: Row, number: int) -> Written | str:
        text = filled_text(row.fields, self.target)
        source = writer(self.prefix + filled_text(row.fields, self.source))
        if isinstance(source, str):
            return source
        target = writer.tokenizer(text_target=text, verbose=False)
        over = len(target["input_ids"]) > writer.limit
        if over and writer.over_length == "error":
            raise DataError(f"{len(target['input_ids'])} tokens of {self.target}, more than {writer.limit}; shorten it")
        if over and writer.over_length == "drop":
            return f"{self.target} longer than {writer.limit} tokens"
        if over:  # by the tokenizer, which keeps the end token: without it answers would not learn to end
            target = writer.tokenizer(text_target=text, verbose=False, truncation=True, max_length=writer.limit)
        labels, ids = ids_of(target).astype(np.int64), ids_of(source)
        none, cut = np.zeros(len(ids), np.bool_), over or was_cut(source)
        return Written(ids, none, number, row.origin, labels, text=text, tokenizer=writer.tokenizer, cut=cut)

    def told(self, example: Any) -> str:
        return example.text

    def batch(self, examples: Sequence[Any], *, device: torch.device, draw: Draw | None = None) -> Padded:
        """In order of the sources' length, which pads attention least."""
        in_order = sorted(examples, key=lambda each: len(each.input_ids))
        return padded(in_order, device=device, draw=draw, places=True)

    def units(self, batch: Padded) -> int:
        return int((batch.target != NO_TARGET).sum())

    def loss(self, model: nn.Module, batch: Padded) -> Tensor:
        moved = _moved_on(model, batch.target)
        inputs = {**batch.inputs, "decoder_input_ids": moved}
        shown = Padded(inputs, batch.target, batch.rows, batch.draw)
        return learned_loss(model, batch.target, lambda: answered(model, shown).logits)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, dataset: Dataset, *, micro_batch_tokens: int) -> dict[str, float]:
        """`loss` per label token, the measures over the `scored` rows that were answered greedily, `rows`,
        `label_tokens`."""
        device = next(model.parameters()).device
        total, units = 0.0, 0
        for indices in batches_by_length(model, dataset, micro_batch_tokens):
            batch = self.batch([dataset[index] for index in indices], device=device)
            total += self.loss(model, batch).item()
            units += self.units(batch)
        rows: list[Any] = list(_spread(dataset, self.scored))
        said = self._said(model, rows[0].tokenizer, [row.input_ids.tolist() for row in rows])
        found = scores_of(self.measures, said, [row.text for row in rows])
        return {"loss": total / units, **found, "rows": len(dataset), "scored": len(rows), "label_tokens": units}

    def _said(self, model: nn.Module, tokenizer: Any, sources: Sequence[Sequence[int]]) -> list[str]:
        """Greedy answers, of as many tokens as the decoder has positions at most."""
        room = min(self.max_tokens, context_limit(model) or self.max_tokens)
        written = generate(model, sources, room, stop_ids=own_stop_ids(model))
        return [tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in written]

    @torch.no_grad()
    def answer(self, model: nn.Module, reader: Reader, fields: Mapping[str, Any]) -> str:
        source = Writer(reader.tokenizer, reader.limit, "error")(self.prefix + filled_text(fields, self.source))
        return self._said(model, reader.tokenizer, [ids_of(source).tolist()])[0]


def _moved_on(model: Any, target: Tensor) -> Tensor:
    """What the decoder reads: the start token, then the target without its last."""
    return model.prepare_decoder_input_ids_from_labels(labels=target)


def _spread(dataset: Dataset, most: int) -> Iterator[Example]:
    count = min(most, len(dataset))
    return (dataset[index * len(dataset) // count] for index in range(count))


def require_packages(measures: Sequence[Measure]) -> None:
    """RequestError for each measure whose package is not here."""
    missing = [PACKAGES[each][1] for each in measures if each in PACKAGES and find_spec(PACKAGES[each][0]) is None]
    if missing:
        raise RequestError(f"task.measures: needs {' and '.join(missing)}: pip install lorica[texts]")


def scores_of(measures: Sequence[Measure], said: Sequence[str], wanted: Sequence[str]) -> dict[str, float]:
    """Each measure over all answers: shares of 1, BLEU of 100."""
    require_packages(measures)
    found: dict[str, float] = {}
    if "exact_match" in measures:
        same = sum(one.split() == other.split() for one, other in zip(said, wanted, strict=True))
        found["exact_match"] = same / len(wanted)
    if "rouge" in measures:
        found |= _rouge(said, wanted)
    if "bleu" in measures:
        found["bleu"] = import_module("sacrebleu").corpus_bleu(list(said), [list(wanted)]).score
    return found


def _rouge(said: Sequence[str], wanted: Sequence[str]) -> dict[str, float]:
    """Mean F of words, of pairs of words, and of the longest common subsequence."""
    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = import_module("rouge_score.rouge_scorer").RougeScorer(kinds)
    scored = [scorer.score(other, one) for one, other in zip(said, wanted, strict=True)]
    return {kind: sum(each[kind].fmeasure for each in scored) / len(scored) for kind in kinds}
