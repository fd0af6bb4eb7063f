"""Padded rows for a model of transformers, which is entered with the noise of each row.

row        0  a b c d      input_ids (B, L), the padding behind          target: one a row (B, ...)
           1  e f . .      attention_mask (B, L)                                 or one a place (B, L), -100 at none
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lorica.data import Answered, Dataset, Example, micro_batches, rectangles
from lorica.data.order import OVERHEAD, Lengths
from lorica.kernels import Noise, head_cross_entropy
from lorica.kernels.cross_entropy import chunks
from lorica.models.ambient import Pass, entered
from lorica.models.causal_lm import CausalLM
from lorica.models.foreign_head import asked_at
from lorica.models.unpadded import stack_of, unpadded
from lorica.tasks.contract import Draw

NO_TARGET = -100


@dataclass(frozen=True, eq=False)
class Padded:
    """`inputs` by the names that the model's forward takes; `rows` (B,) int64 are the stable ids of the examples."""

    inputs: dict[str, Tensor]
    target: Tensor
    rows: Tensor
    draw: Draw | None = None


def padded(
    examples: Sequence[Answered], *, device: torch.device, draw: Draw | None = None, places: bool = False
) -> Padded:
    """The rows of a batch side by side; `places`: the target is one a token."""
    inputs = {
        "input_ids": _side_by_side([each.input_ids for each in examples], 0),
        "attention_mask": _side_by_side([np.ones(len(each.input_ids), np.int32) for each in examples], 0),
    }
    if examples[0].segments is not None:
        inputs["token_type_ids"] = _side_by_side([_segments(each) for each in examples], 0)
    targets = [each.target for each in examples]
    target = _side_by_side(targets, NO_TARGET) if places else torch.from_numpy(np.stack(targets))
    rows = torch.tensor([each.row for each in examples], device=device)
    return Padded({name: value.to(device) for name, value in inputs.items()}, target.to(device), rows, draw)


def _segments(example: Answered) -> Any:
    return np.zeros(len(example.input_ids), np.int32) if example.segments is None else example.segments


def _side_by_side(rows: Sequence[Any], filling: int) -> Tensor:
    wide = np.full((len(rows), max(map(len, rows))), filling, dtype=np.int64)
    for row, values in zip(wide, rows, strict=True):
        row[: len(values)] = values
    return torch.from_numpy(wide)


def answered(model: nn.Module, batch: Padded) -> Any:
    """The output of the model's own forward, dropout drawing by the rows' ids.  Decoders find the last token of a row
    by the id of the padding, and RoBERTa its positions."""
    noise = None if batch.draw is None else Noise(batch.draw.seed, batch.draw.step, batch.rows)
    inputs = dict(batch.inputs)
    padding = getattr(getattr(model, "config", None), "pad_token_id", None)
    if padding and "input_ids" in inputs:
        inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, padding)
    with entered(Pass(noise)), unpadded(model, inputs.get("attention_mask")):
        return model(**inputs, **no_cache(model))


def learned_loss(model: nn.Module, target: Tensor, call: Callable[[], Tensor]) -> Tensor:
    """Summed over the tokens of `target` (B, L); `call` makes logits (B, L, vocabulary) with the model's forward."""
    rows, columns = (target != NO_TARGET).nonzero(as_tuple=True)
    hidden, head = asked_at(model, (rows, columns), call)
    return head_cross_entropy(hidden, head, target[rows, columns])


def learned_answers(model: nn.Module, target: Tensor, call: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Losses (N,) of the tokens of `target`, and (B, L) whether the likeliest token is the target, or there is none."""
    rows, columns = (target != NO_TARGET).nonzero(as_tuple=True)
    hidden, head = asked_at(model, (rows, columns), call)
    wanted, right = target[rows, columns], target == NO_TARGET
    losses = []
    for part in chunks(0, len(wanted)):
        logits = wide(head(hidden[part]))
        losses.append(nn.functional.cross_entropy(logits, wanted[part], reduction="none"))
        right[rows[part], columns[part]] = logits.argmax(-1) == wanted[part]
    return torch.cat(losses), right


def wide(logits: Tensor) -> Tensor:
    """In float32 or better."""
    return logits if logits.dtype == torch.float64 else logits.float()


def no_cache(model: nn.Module) -> dict[str, bool]:
    """In evaluation mode, which our trainer keeps the base in, transformers' models fill a cache nobody reads."""
    return {"use_cache": False} if hasattr(getattr(model, "config", None), "use_cache") else {}


def by_length(model: nn.Module, dataset: Dataset, micro_batch_tokens: int) -> Iterator[list[Example]]:
    """Batches of rows of nearly one length, which pad least."""
    for indices in batches_by_length(model, dataset, micro_batch_tokens):
        yield [dataset[index] for index in indices]


def batches_by_length(model: nn.Module, dataset: Dataset, micro_batch_tokens: int) -> tuple[tuple[int, ...], ...]:
    """The indices of such batches."""
    order = np.argsort(dataset.lengths, kind="stable").tolist()
    return batches(model, order, dataset.lengths, micro_batch_tokens)


def batches(
    model: nn.Module, indices: Sequence[int], lengths: Lengths, micro_batch_tokens: int
) -> tuple[tuple[int, ...], ...]:
    """A step cut into micro-batches, padding counted where the model pads; as few as may be where it costs nothing."""
    if isinstance(model, CausalLM):
        return micro_batches(indices, lengths, micro_batch_tokens)
    overhead = OVERHEAD if stack_of(model) is None else micro_batch_tokens
    return rectangles(indices, lengths, micro_batch_tokens, overhead=overhead)


def computed(model: nn.Module, lengths: npt.NDArray[np.int64]) -> int:
    """The tokens that the model computes for a micro-batch of such rows."""
    flat = isinstance(model, CausalLM) or stack_of(model) is not None
    return int(lengths.sum() if flat else len(lengths) * lengths.max())
