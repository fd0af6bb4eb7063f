"""Token classification: each word of a text has a tag (names, parts of speech).

words    Anna   lives   in   Leningrad         the tag stands at the first token of each word; other tokens,
tokens   anna   lives   in   len ##ing ##rad   special ones among them, have none
target   B-PER  O       O    B-LOC  .   .      loss = sum over words of -log softmax(logits)[tag]        unit: words

Entities are read off tags as conlleval and seqeval do (Ramshaw & Marcus 1995; https://github.com/chakki-works/seqeval):
B- or S- begins one, so does I- or E- after O or after another type; E-, S-, O, B- or another type ends it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lorica.data import Answered, DataConfig, Dataset, Example, Row, RowByRow, Teacher
from lorica.data.reading import kind_of
from lorica.errors import DataError, ModelError
from lorica.models.heads import Head, HeadKind
from lorica.tasks import labels, scores
from lorica.tasks.contract import Draw, Reader, Task, require_rows_alone
from lorica.tasks.padded import NO_TARGET, Padded, answered, batches_by_length, padded, wide
from lorica.tasks.writing import FieldName, Writer, ids_of, segments_of, was_cut

Entity = tuple[str, int, int]


class TokenClassification(Task):
    """words, tags: the fields of a row, two lists of equal length.  labels: the names of the tags, found in the
    rows where none are given."""

    name: ClassVar[str] = "token_classification"
    unit: ClassVar[str] = "words"
    head_kind: ClassVar[HeadKind | None] = "token_classification"
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "entity_f1", "f1")

    words: FieldName = "words"
    tags: FieldName = "tags"
    labels: tuple[str, ...] = ()

    @property
    def needs_rows(self) -> bool:
        return not self.labels

    @property
    def prompt_field(self) -> str | None:
        return self.words

    def settled(
        self, rows: Sequence[Row], known: Sequence[str] = (), held: Sequence[Row] = ()
    ) -> "TokenClassification":
        if self.labels:
            return self
        found = labels.found(rows, self._tags, known=known)
        labels.require_several(found, self.tags)
        return self.model_copy(update={"labels": labels.with_held(found, held, self._tags, known)})

    def head(self, seed: int = 0) -> Head:
        return Head(kind="token_classification", outputs=len(self.labels), labels=self.labels, seed=seed)

    def lessons(self, config: DataConfig, reader: Reader) -> Teacher:
        require_rows_alone(config, self.name)
        writer = _with_offsets(Writer.of(config, reader))

        def read(row: Row, number: int) -> Example | str:
            words, tags = self._words(row.fields), list(self._tags(row.fields))
            if len(words) != len(tags):
                raise DataError(f"{len(words)} {self.words} and {len(tags)} {self.tags}; each word has one tag")
            numbers = [labels.number_of(tag, self.labels, self.tags) for tag in tags]
            return _example(writer, words, numbers, number, row.origin)

        return RowByRow(self.name, read)

    def _words(self, fields: Mapping[str, Any]) -> list[str]:
        value = labels.value_of(fields, self.words)
        words = value.split() if isinstance(value, str) else value
        if not isinstance(words, list | tuple) or not words:
            raise DataError(f"field {self.words!r}: a list of words, not {kind_of(value) if words else 'empty'}")
        for number, word in enumerate(words):
            if not isinstance(word, str) or not word.strip():
                raise DataError(f"field '{self.words}[{number}]': a word, not {word!r}")
        return list(words)

    def _tags(self, fields: Mapping[str, Any]) -> Iterator[str]:
        value = labels.value_of(fields, self.tags)
        if not isinstance(value, list | tuple):
            raise DataError(f"field {self.tags!r}: a list of tags, not {kind_of(value)}")
        return (labels.name_of(tag, f"{self.tags}[{number}]") for number, tag in enumerate(value))

    def batch(self, examples: Sequence[Any], *, device: torch.device, draw: Draw | None = None) -> Padded:
        return padded(sorted(examples, key=len), device=device, draw=draw, places=True)

    def units(self, batch: Padded) -> int:
        return int((batch.target != NO_TARGET).sum())

    def loss(self, model: nn.Module, batch: Padded) -> Tensor:
        return _summed(wide(answered(model, batch).logits), batch.target)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, dataset: Dataset, *, micro_batch_tokens: int) -> dict[str, float]:
        """`loss` per word, `accuracy` of tags, `entity_f1` where the tags are of entities, else `f1` of the tags
        (macro); `rows` and `words`."""
        device = next(model.parameters()).device
        total, said, wanted = 0.0, list[np.ndarray](), list[np.ndarray]()
        for indices in batches_by_length(model, dataset, micro_batch_tokens):
            batch = padded([dataset[i] for i in indices], device=device, places=True)  # type: ignore[misc]
            logits = wide(answered(model, batch).logits)
            total += _summed(logits, batch.target).item()
            for answers, target in zip(logits.argmax(-1).cpu().numpy(), batch.target.cpu().numpy(), strict=True):
                at = target != NO_TARGET
                said.append(answers[at])
                wanted.append(target[at])
        words = sum(map(len, wanted))
        return {"loss": total / words, **self._scores(said, wanted), "rows": len(dataset), "words": words}

    def _scores(self, said: list[np.ndarray], wanted: list[np.ndarray]) -> dict[str, float]:
        every = scores.of_classes(np.concatenate(said), np.concatenate(wanted), len(self.labels))
        if not of_entities(self.labels):
            return {"accuracy": every["accuracy"], "f1": every["f1"]}
        named = [[[self.labels[tag] for tag in row] for row in rows] for rows in (said, wanted)]
        return {"accuracy": every["accuracy"], "entity_f1": entity_f1(*named)}

    def told(self, example: Any) -> str:
        return " ".join(self.labels[tag] for tag in example.target if tag != NO_TARGET)

    @torch.no_grad()
    def answer(self, model: nn.Module, reader: Reader, fields: Mapping[str, Any]) -> str:
        words = self._words(fields)
        writer = _with_offsets(Writer(reader.tokenizer, reader.limit, "error"))
        example = _example(writer, words, [0] * len(words), 0, "prompt")
        assert isinstance(example, Answered)
        batch = padded([example], device=next(model.parameters()).device, places=True)
        found = wide(answered(model, batch).logits)[batch.target != NO_TARGET].argmax(-1).tolist()
        return " ".join(f"{word}/{self.labels[tag]}" for word, tag in zip(words, found, strict=True))


def _summed(logits: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=NO_TARGET, reduction="sum")


def _with_offsets(writer: Writer) -> Writer:
    if not getattr(writer.tokenizer, "is_fast", False):
        raise ModelError("this base's tokenizer does not say where its tokens come from; give one with tokenizer.json")
    return writer


def _example(writer: Writer, words: Sequence[str], tags: Sequence[int], row: int, origin: str) -> Answered | str:
    written = writer(" ".join(words), cut=True, return_offsets_mapping=True)
    if isinstance(written, str):
        return written
    places = first_tokens(words, written["offset_mapping"])
    target = np.full(len(written["input_ids"]), NO_TARGET, dtype=np.int64)
    for place, tag in zip(places, tags, strict=False):
        target[place] = tag
    learned, segments = target != NO_TARGET, segments_of(written)
    return Answered(ids_of(written), learned, row, origin, target, segments, cut=was_cut(written))


def first_tokens(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> list[int]:
    """The place of the first token of each word of the words joined by blanks; words that were cut off have none.

    DataError for a word that shares its token with the one before, or has none although a later one does.
    """
    tokens = [(place, end) for place, (start, end) in enumerate(offsets) if end > start]
    found: list[int] = []
    begin, at = 0, 0
    for word in words:
        while at < len(tokens) and tokens[at][1] <= begin:
            at += 1
        if at == len(tokens):
            break
        if found and tokens[at][0] == found[-1]:
            raise DataError(f"the word {word!r} has no token of its own in this base's vocabulary; leave it out")
        found.append(tokens[at][0])
        begin += len(word) + 1
    return found


def of_entities(tags: Sequence[str]) -> bool:
    """Whether every tag is O or says by B-, I-, E- or S- where in an entity its word stands."""
    return all(tag == "O" or tag[:2] in ("B-", "I-", "E-", "S-") for tag in tags)


def entities(tags: Sequence[str]) -> Iterator[Entity]:
    """(type, first word, last word) of each entity."""
    begun, before = 0, "O"
    for place, tag in enumerate((*tags, "O")):
        if before != "O" and _ends(before, tag):
            yield before[2:], begun, place - 1
        if tag != "O" and _begins(before, tag):
            begun = place
        before = tag


def _ends(before: str, tag: str) -> bool:
    return before[0] in "ES" or tag == "O" or tag[0] in "BS" or before[2:] != tag[2:]


def _begins(before: str, tag: str) -> bool:
    return tag[0] in "BS" or before == "O" or before[0] in "ES" or before[2:] != tag[2:]


def entity_f1(said: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]]) -> float:
    """2 right / (said + wanted) over the entities of all rows; one is right when type and both ends are."""
    pairs = [(set(entities(s)), set(entities(w))) for s, w in zip(said, wanted, strict=True)]
    total = sum(len(s) + len(w) for s, w in pairs)
    return 2 * sum(len(s & w) for s, w in pairs) / total if total else 0.0
