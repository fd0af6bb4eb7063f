"""One answer for a whole text, or for a pair of texts: what classification and regression share.

{text, label}  or  {text, pair, label}   ->  the base's own writing of them  ->  logits (B, C)
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lorica.data import Answered, DataConfig, Dataset, Example, Row, RowByRow, Teacher
from lorica.models.heads import HeadKind
from lorica.tasks.contract import Draw, Reader, Task, require_rows_alone
from lorica.tasks.padded import Padded, answered, batches_by_length, padded, wide
from lorica.tasks.writing import FieldName, Writer, filled_text, ids_of, segments_of, was_cut


class SequenceTask(Task):
    """text, pair, label: the fields of a row; `pair` where the answer is about two texts."""

    unit: ClassVar[str] = "rows"
    head_kind: ClassVar[HeadKind | None] = "sequence_classification"

    text: FieldName = "text"
    pair: FieldName | None = None
    label: FieldName = "label"

    @property
    def prompt_field(self) -> str | None:
        return self.text if self.pair is None else None

    @abstractmethod
    def target(self, fields: Mapping[str, Any]) -> np.ndarray | str:
        """The answer of a row, or why the row is dropped.  DataError where it is none."""

    @abstractmethod
    def losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """(B, C) and the targets of the rows -> (B,)"""

    @abstractmethod
    def scores(self, logits: np.ndarray, target: np.ndarray) -> dict[str, float]:
        """The metrics over all rows (N, C)."""

    @abstractmethod
    def said(self, logits: np.ndarray) -> str:
        """(C,) -> the answer in words."""

    def lessons(self, config: DataConfig, reader: Reader) -> Teacher:
        require_rows_alone(config, self.name)
        writer = Writer.of(config, reader)

        def read(row: Row, number: int) -> Example | str:
            target = self.target(row.fields)
            return target if isinstance(target, str) else self._example(writer, row.fields, target, number, row.origin)

        return RowByRow(self.name, read)

    def _example(
        self, writer: Writer, fields: Mapping[str, Any], target: np.ndarray, number: int, origin: str
    ) -> Answered | str:
        second = None if self.pair is None else filled_text(fields, self.pair)
        written = writer(filled_text(fields, self.text), second)
        if isinstance(written, str):
            return written
        ids, cut = ids_of(written), was_cut(written)
        return Answered(ids, np.zeros(len(ids), np.bool_), number, origin, target, segments_of(written), cut=cut)

    def batch(self, examples: Sequence[Any], *, device: torch.device, draw: Draw | None = None) -> Padded:
        """In order of length, which pads attention least."""
        return padded(sorted(examples, key=len), device=device, draw=draw)

    def units(self, batch: Padded) -> int:
        return len(batch.rows)

    def loss(self, model: nn.Module, batch: Padded) -> Tensor:
        return self.losses(wide(answered(model, batch).logits), batch.target).sum()

    @torch.no_grad()
    def evaluate(self, model: nn.Module, dataset: Dataset, *, micro_batch_tokens: int) -> dict[str, float]:
        """`loss` per row, the metrics, and `rows`."""
        logits, target = self.predicted(model, dataset, micro_batch_tokens)
        loss = self.losses(logits, target).mean().item()
        return {"loss": loss, **self.scores(logits.numpy(), target.numpy()), "rows": len(dataset)}

    @torch.no_grad()
    def predicted(self, model: nn.Module, dataset: Dataset, micro_batch_tokens: int) -> tuple[Tensor, Tensor]:
        """Logits (N, C) and targets of all rows, in the order of the data set."""
        device = next(model.parameters()).device
        order, logits, targets = [], [], []
        for indices in batches_by_length(model, dataset, micro_batch_tokens):
            batch = padded([dataset[index] for index in indices], device=device)  # type: ignore[misc]
            order += indices
            logits.append(wide(answered(model, batch).logits).cpu())
            targets.append(batch.target.cpu())
        back = torch.tensor(order).argsort()
        return torch.cat(logits)[back], torch.cat(targets)[back]

    def answer(self, model: nn.Module, reader: Reader, fields: Mapping[str, Any]) -> str:
        return self.said(self.logits(model, reader, fields)[0])

    @torch.no_grad()
    def logits(self, model: nn.Module, reader: Reader, fields: Mapping[str, Any]) -> tuple[np.ndarray, int]:
        """(C,) of one row without its answer, and the tokens that were read."""
        writer = Writer(reader.tokenizer, reader.limit, "error")
        example = self._example(writer, fields, np.zeros(1), 0, "prompt")
        assert isinstance(example, Answered)
        batch = padded([example], device=next(model.parameters()).device)
        return wide(answered(model, batch).logits)[0].cpu().numpy(), len(example)
