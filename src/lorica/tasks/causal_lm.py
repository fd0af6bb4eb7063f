"""Causal language modelling: every learned token is predicted from those before it in its own document.

index     0     1     2     3 | 0     1     2        two documents in one flat row
token     a     b     c     d | e     f     g
label     .     .     x     x | .     x     x        data: the token at this index is learned
place           1     2       | 4     5              the hidden state at t predicts token t + 1, so only these
target          c     d       | f     g              states go through the head

loss = sum over places of -log softmax(head(hidden[place]))[target]
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lorica.data import DataConfig, Dataset, Example, Teacher
from lorica.data.lessons import Lessons
from lorica.errors import ModelError
from lorica.kernels import Noise, head_cross_entropy
from lorica.kernels.cross_entropy import chunks
from lorica.models.ambient import Pass, entered
from lorica.models.causal_lm import CausalLM
from lorica.models.edited import Edited
from lorica.models.foreign_head import Head, asked_at
from lorica.models.layout import Layout
from lorica.tasks.contract import Draw, Reader, Task
from lorica.tasks.padded import by_length, no_cache

SILENT = ("Model", "ForMaskedLM", "ForPreTraining", "Classification", "ForQuestionAnswering")
"""How transformers' names of models end that write no next token, `LMHeadModel` excepted."""


@dataclass(frozen=True, eq=False)
class Batch:
    """tokens (T,) int64; layout of their documents; places (N,) int64 ascending; targets (N,) int64.

    `rows` (documents,) int64 are the stable ids of the examples, and `draw` under what dropout draws.
    """

    tokens: Tensor
    layout: Layout
    places: Tensor
    targets: Tensor
    rows: Tensor
    draw: Draw | None = None


class CausalLanguageModelling(Task):
    name: ClassVar[str] = "causal_lm"
    unit: ClassVar[str] = "label tokens"

    def lessons(self, config: DataConfig, reader: Reader) -> Teacher:
        _require_writer(reader.config)
        assert reader.plain is not None
        return Lessons(config, reader.plain, reader.template, reader.limit)

    def batch(self, examples: Sequence[Example], *, device: torch.device, draw: Draw | None = None) -> Batch:
        """In order of length, which pads attention least."""
        return flat(sorted(examples, key=len), device=device, draw=draw)

    def units(self, batch: Batch) -> int:
        return len(batch.targets)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        hidden, head_of = _before_head(model, batch)
        parts = chunks(0, len(hidden)) if isinstance(getattr(model, "head", None), Edited) else [slice(None)]
        return torch.stack([_part_loss(batch, hidden, head_of, part) for part in parts]).sum()

    @torch.no_grad()
    def evaluate(self, model: nn.Module, dataset: Dataset, *, micro_batch_tokens: int) -> dict[str, float]:
        """`loss` per label token, `perplexity`, `rows` and `label_tokens`."""
        device = next(model.parameters()).device
        total, units = 0.0, 0
        for examples in by_length(model, dataset, micro_batch_tokens):
            batch = self.batch(examples, device=device)
            total += self.loss(model, batch).item()
            units += self.units(batch)
        loss = total / units
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "rows": len(dataset),
            "label_tokens": units,
        }


def _require_writer(config: Any) -> None:
    """ModelError for a base that is known to write no next token."""
    name = (getattr(config, "architectures", None) or [""])[0] or ""
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{name}: it reads one text and writes another; name the task: seq2seq")
    if name.endswith(SILENT) and not name.endswith("LMHeadModel"):
        raise ModelError(f"{name}: it writes no next token; name a task that it can learn, such as classification")


def flat(examples: Sequence[Example], *, device: torch.device, draw: Draw | None) -> Batch:
    """The documents one after another, in this order."""
    tokens = torch.from_numpy(np.concatenate([example.input_ids for example in examples])).to(device, torch.int64)
    learned = torch.from_numpy(np.concatenate([example.labels for example in examples]))
    labelled = learned.nonzero().squeeze(-1).to(device)
    layout = Layout.of([len(example) for example in examples], device=device)
    rows = torch.tensor([example.row for example in examples], device=device)
    if draw is not None:
        layout = layout.with_noise(draw.seed, draw.step, rows)
    return Batch(tokens, layout, labelled - 1, tokens[labelled], rows, draw)


def document_losses(model: nn.Module, batch: Batch) -> Tensor:
    """(documents,) the loss summed over the label tokens of each, from one forward pass over all."""
    documents, counts = batch.layout.document_of[batch.places], len(batch.layout.documents)
    hidden, head_of = _before_head(model, batch)
    ends = torch.bincount(documents, minlength=counts).cumsum(0).tolist()
    return torch.stack(
        [
            torch.stack([_part_loss(batch, hidden, head_of, part) for part in chunks(start, end)]).sum()
            for start, end in zip([0, *ends], ends, strict=False)
        ]
    )


def _part_loss(batch: Batch, hidden: Tensor, head_of: Callable[[slice], Head], part: slice) -> Tensor:
    return head_cross_entropy(hidden[part], head_of(part), batch.targets[part])


def _before_head(model: nn.Module, batch: Batch) -> tuple[Tensor, Callable[[slice], Head]]:
    """(N, d), and the head of a part of these rows."""
    if not isinstance(model, CausalLM):
        hidden, head = _foreign_hidden(model, batch)
        return hidden, lambda part: head
    own: Any = model.head
    edited = isinstance(own, Edited)
    hidden = model.hidden(batch.tokens, batch.layout, batch.places)
    return hidden, lambda part: _edited_head(model, batch.layout, batch.places[part]) if edited else own


def _edited_head(model: CausalLM, layout: Layout, places: Tensor) -> Head:
    """The head of the tokens at these places, which an edit may route and drop as any others."""
    here = layout.at(places)
    return lambda hidden: model.logits(hidden, here)


def _foreign_hidden(model: nn.Module, batch: Batch) -> tuple[Tensor, Head]:
    """Of a model that takes padded rows and returns logits (B, L, vocabulary)."""
    layout = batch.layout
    shape = (len(layout.documents), max(layout.documents))
    at = (layout.document_of, layout.offsets)
    rows = batch.tokens.new_zeros(shape).index_put(at, batch.tokens)
    mask = torch.zeros_like(rows).index_put(at, torch.ones_like(batch.tokens))
    places = (layout.document_of[batch.places], layout.offsets[batch.places])
    with entered(Pass(_row_noise(batch))):
        return asked_at(model, places, lambda: _logits(model(input_ids=rows, attention_mask=mask, **no_cache(model))))


def _row_noise(batch: Batch) -> Noise | None:
    return None if batch.draw is None else Noise(batch.draw.seed, batch.draw.step, batch.rows)


def _logits(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.logits
