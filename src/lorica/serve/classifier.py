"""A classification adapter on a base of its own with its head: one row in, its label and the odds of each."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from lorica.errors import RequestError
from lorica.serve.http.outside import Classified, Fields
from lorica.tasks import Classification, MultiLabel, Reader
from lorica.tasks.sequence import SequenceTask


class Classifier:
    """Of a task that gives one answer to a whole text.  Not for several threads at once."""

    def __init__(self, model: nn.Module, reader: Reader, task: SequenceTask) -> None:
        self.model, self.reader, self.task = model, reader, task
        self.labels: tuple[str, ...] = getattr(task, "labels", ())

    def __call__(self, fields: Fields) -> Classified:
        """RequestError for a row that lacks a field, or is longer than the base reads."""
        logits, tokens = self.task.logits(self.model, self.reader, self._row(fields))
        return Classified(self.task.said(logits), tuple(odds(self.task, logits).tolist()), tokens)

    def _row(self, fields: Fields) -> Mapping[str, Any]:
        if isinstance(fields, Mapping):
            return fields
        if self.task.prompt_field is None:
            raise RequestError(f"input: a row of {self.task.name} here has the fields text and pair; send an object")
        return {self.task.prompt_field: fields}


def odds(task: SequenceTask, logits: np.ndarray) -> np.ndarray:
    """(C,) -> (C,) probabilities; what is no classification stays as it is."""
    wide = logits.astype(np.float64)
    if isinstance(task, Classification):
        raised = np.exp(wide - wide.max())
        return raised / raised.sum()
    return 1 / (1 + np.exp(-wide)) if isinstance(task, MultiLabel) else wide
