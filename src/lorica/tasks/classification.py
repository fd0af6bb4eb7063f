"""Classification: each text, or pair of texts, has one of several labels.

loss = sum over rows of -log softmax(logits)[label]        unit: rows
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from lorica.data import Row
from lorica.models.heads import Head
from lorica.tasks import labels, scores
from lorica.tasks.sequence import SequenceTask


class Classification(SequenceTask):
    """labels: their names in order; found in the rows where none are given.
    least: labels that fewer training rows have are left out, and rows with labels that are left out dropped.
    """

    name: ClassVar[str] = "classification"
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "f1", "matthews")

    labels: tuple[str, ...] = ()
    least: Annotated[int, Field(ge=1)] = 1

    @property
    def needs_rows(self) -> bool:
        return not self.labels

    def settled(self, rows: Sequence[Row], known: Sequence[str] = (), held: Sequence[Row] = ()) -> "Classification":
        if self.labels:
            return self
        found = labels.found(rows, self._names, least=self.least, known=known)
        labels.require_several(found, self.label, self.least)
        more = held if self.least == 1 else ()
        return self.model_copy(update={"labels": labels.with_held(found, more, self._names, known)})

    def _names(self, fields: Mapping[str, Any]) -> list[str]:
        return [self._name(fields)]

    def head(self, seed: int = 0) -> Head:
        return Head(
            kind="sequence_classification",
            outputs=len(self.labels),
            labels=self.labels,
            problem="single_label_classification",
            seed=seed,
        )

    def _name(self, fields: Mapping[str, Any]) -> str:
        return labels.name_of(labels.value_of(fields, self.label), self.label)

    def target(self, fields: Mapping[str, Any]) -> np.ndarray | str:
        name = self._name(fields)
        if self.least > 1 and name not in self.labels:
            return f"a label that fewer than {self.least} training rows have"
        return np.array(labels.number_of(name, self.labels, self.label))

    def losses(self, logits: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, target, reduction="none")

    def scores(self, logits: np.ndarray, target: np.ndarray) -> dict[str, float]:
        return scores.of_classes(logits.argmax(1), target, len(self.labels))

    def told(self, example: Any) -> str:
        return self.labels[int(example.target)]

    def said(self, logits: np.ndarray) -> str:
        return self.labels[int(logits.argmax())]
