"""Regression: each text, or pair of texts, has a number.

loss = sum over rows of (output - number)^2        unit: rows
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from lorica.data.reading import kind_of
from lorica.errors import DataError
from lorica.models.heads import Head
from lorica.tasks import labels, scores
from lorica.tasks.sequence import SequenceTask


class Regression(SequenceTask):
    """The head answers in the numbers' own scale, as transformers' does: numbers near one are learned fastest."""

    name: ClassVar[str] = "regression"
    metrics: ClassVar[tuple[str, ...]] = ("pearson", "spearman")

    def head(self, seed: int = 0) -> Head:
        return Head(kind="sequence_classification", outputs=1, problem="regression", seed=seed)

    def target(self, fields: Mapping[str, Any]) -> np.ndarray:
        value = labels.value_of(fields, self.label)
        try:
            number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            told = repr(value) if isinstance(value, str | float) else kind_of(value)
            raise DataError(f"field {self.label!r}: a number, not {told}")
        return np.array(number, np.float64)

    def losses(self, logits: Tensor, target: Tensor) -> Tensor:
        return (logits.squeeze(1) - target.to(logits.dtype)).square()

    def scores(self, logits: np.ndarray, target: np.ndarray) -> dict[str, float]:
        return scores.of_numbers(logits[:, 0].astype(np.float64), target)

    def told(self, example: Any) -> str:
        return f"{float(example.target):.6g}"

    def said(self, logits: np.ndarray) -> str:
        return f"{float(logits[0]):.6g}"
