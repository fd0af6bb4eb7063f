"""Multi-label classification: each text, or pair of texts, has any number of the labels, none among them.

loss = sum over rows of the mean over labels of -[y log sigmoid(z) + (1 - y) log sigmoid(-z)]        unit: rows
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from lorica.data import Row
from lorica.data.reading import kind_of
from lorica.errors import DataError
from lorica.models.heads import Head
from lorica.tasks import labels, scores
from lorica.tasks.sequence import SequenceTask


class MultiLabel(SequenceTask):
    """A row's label is a list of names, which may be empty.  labels: all of them, found in the rows where none
    are given."""

    name: ClassVar[str] = "multi_label"
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "f1", "f1_macro")

    labels: tuple[str, ...] = ()

    @property
    def needs_rows(self) -> bool:
        return not self.labels

    def settled(self, rows: Sequence[Row], known: Sequence[str] = (), held: Sequence[Row] = ()) -> "MultiLabel":
        if self.labels:
            return self
        found = labels.found(rows, self._names, known=known)
        if not found:
            raise DataError(f"field {self.label!r}: no row has a label")
        return self.model_copy(update={"labels": labels.with_held(found, held, self._names, known)})

    def head(self, seed: int = 0) -> Head:
        return Head(
            kind="sequence_classification",
            outputs=len(self.labels),
            labels=self.labels,
            problem="multi_label_classification",
            seed=seed,
        )

    def _names(self, fields: Mapping[str, Any]) -> Iterator[str]:
        value = labels.value_of(fields, self.label)
        if not isinstance(value, list | tuple):
            raise DataError(f"field {self.label!r}: a list of labels, not {kind_of(value)}; one label: classification")
        return (labels.name_of(each, self.label) for each in value)

    def target(self, fields: Mapping[str, Any]) -> np.ndarray:
        held = np.zeros(len(self.labels), np.float32)
        for name in self._names(fields):
            held[labels.number_of(name, self.labels, self.label)] = 1.0
        return held

    def losses(self, logits: Tensor, target: Tensor) -> Tensor:
        every = nn.functional.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")
        return every.mean(1)

    def scores(self, logits: np.ndarray, target: np.ndarray) -> dict[str, float]:
        return scores.of_label_sets(logits > 0, target > 0)

    def told(self, example: Any) -> str:
        return self.said(example.target) or "none"

    def said(self, logits: np.ndarray) -> str:
        return ", ".join(name for name, logit in zip(self.labels, logits, strict=True) if logit > 0)
