"""Preference tuning: of two answers to one prompt, the chosen one becomes the likelier.  unit: pairs

    margin = beta ((log pi(c | x) - log ref(c | x)) - (log pi(r | x) - log ref(r | x)))
    loss   = sum over pairs of -(1 - e) log sigmoid(margin) - e log sigmoid(-margin)

x the prompt, c the chosen answer, r the rejected one, pi the adapted model, ref the base itself, e `label_smoothing`;
log pi(c | x) is the sum over the tokens of c.  Rafailov et al. 2023, arXiv:2305.18290, equation 7; e as in their code.

index      0  1  2  3 | 0  1  2  3  4        a pair is two documents side by side; both hold the prompt
token      x  x  c  c | x  x  r  r  r
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor, nn

from lorica.data import DataConfig, Dataset, Example, Row, RowByRow, Teacher
from lorica.data.encode import Encoded, Encoder, speech
from lorica.data.lessons import CUT_AWAY, UNLEARNED
from lorica.data.reading import kind_of
from lorica.data.shapes import Chat, Pair, Turns, text_of, understand
from lorica.data.template import own_renderer
from lorica.errors import DataError, ModelError, RequestError
from lorica.tasks.causal_lm import Batch, document_losses, flat
from lorica.tasks.contract import Draw, Reader, Task
from lorica.tasks.labels import value_of
from lorica.tasks.padded import by_length
from lorica.tasks.writing import FieldName

Messages = list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Preferred(Example):
    """The chosen document, then the rejected one; `first` tokens are the chosen's.

    `reference` (2,) float64 is what the base says: the log-probabilities of both answers, None until it was asked.
    """

    first: int
    reference: npt.NDArray[np.float64] | None = None

    @property
    def units(self) -> int:
        return 1

    def content(self) -> Iterator[bytes]:
        yield from super().content()
        yield self.first.to_bytes(8, "little")

    def documents(self) -> tuple[Example, Example]:
        """Both under the id of the pair, so that dropout treats their prompt alike."""
        cut = self.first
        chosen = Example(self.input_ids[:cut], self.labels[:cut], self.row, self.origin)
        return chosen, Example(self.input_ids[cut:], self.labels[cut:], self.row, self.origin)


@dataclass(frozen=True, eq=False)
class Pairs:
    """`documents`: chosen, rejected, chosen ...; reference (pairs, 2)."""

    documents: Batch
    reference: Tensor


class PreferenceTuning(Task):
    """prompt, chosen, rejected: the fields of a row, texts or messages; without a prompt, two chats whose beginning is
    the same.  beta: how dear it is to leave the base.  label_smoothing: the share of pairs the wrong way round."""

    name: ClassVar[str] = "dpo"
    unit: ClassVar[str] = "pairs"
    supervised: ClassVar[bool] = False
    metrics: ClassVar[tuple[str, ...]] = ("reward_accuracy", "reward_margin")
    compares: ClassVar[bool] = True

    prompt: FieldName = "prompt"
    chosen: FieldName = "chosen"
    rejected: FieldName = "rejected"
    beta: Annotated[float, Field(gt=0)] = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0

    def lessons(self, config: DataConfig, reader: Reader) -> Teacher:
        return _Teacher(self, config, reader)

    def compared(self, base: nn.Module, dataset: Dataset, *, micro_batch_tokens: int) -> Dataset:
        """Every pair with the base's own log-probabilities, in evaluation mode."""
        if all(isinstance(each, Preferred) and each.reference is not None for each in dataset.examples):
            return dataset
        modes = [module for module in base.modules() if module.training]
        base.eval()
        known: dict[int, npt.NDArray[np.float64]] = {}
        try:
            with torch.no_grad():
                for examples in by_length(base, dataset, micro_batch_tokens):
                    said = self._log_probabilities(base, self._documents(examples, base)).double().cpu().numpy()
                    known.update(zip(map(id, examples), said, strict=True))
        finally:
            for module in modes:
                module.training = True
        return replace(dataset, examples=tuple(replace(e, reference=known[id(e)]) for e in dataset.examples))  # type: ignore[call-arg]

    def told(self, example: Any) -> str:
        return f"the first {example.first} tokens are chosen, the others rejected"

    def _documents(self, examples: Sequence[Any], model: nn.Module) -> Batch:
        device = next(model.parameters()).device
        return flat([part for each in examples for part in each.documents()], device=device, draw=None)

    def _log_probabilities(self, model: nn.Module, documents: Batch) -> Tensor:
        """(pairs, 2)"""
        return -document_losses(model, documents).view(-1, 2)

    def batch(self, examples: Sequence[Any], *, device: torch.device, draw: Draw | None = None) -> Pairs:
        examples = sorted(examples, key=len)
        unknown = [each.origin for each in examples if each.reference is None]
        if unknown:
            raise RequestError(f"{unknown[0]}: what the base says of this pair is not known; call task.compared first")
        documents = flat([part for each in examples for part in each.documents()], device=device, draw=draw)
        reference = torch.from_numpy(np.stack([each.reference for each in examples])).to(device)
        return Pairs(documents, reference)

    def units(self, batch: Pairs) -> int:
        return len(batch.reference)

    def rewards(self, model: nn.Module, batch: Pairs) -> Tensor:
        """(pairs, 2): beta (log pi - log ref) of chosen and rejected."""
        said = self._log_probabilities(model, batch.documents)
        return self.beta * (said - batch.reference.to(said.dtype))

    def loss(self, model: nn.Module, batch: Pairs) -> Tensor:
        return self._losses(self.rewards(model, batch)).sum()

    def _losses(self, rewards: Tensor) -> Tensor:
        margin, e = rewards[:, 0] - rewards[:, 1], self.label_smoothing
        lost = nn.functional.softplus(-margin)
        return lost if e == 0 else (1 - e) * lost + e * nn.functional.softplus(margin)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, dataset: Dataset, *, micro_batch_tokens: int) -> dict[str, float]:
        """`loss` per pair; `reward_accuracy`, the share of pairs whose chosen answer has the greater reward (equal ones
        count half); `reward_margin`, `reward_chosen`, `reward_rejected`, means over `pairs`."""
        device = next(model.parameters()).device
        batches = by_length(model, dataset, micro_batch_tokens)
        rewards = torch.cat([self.rewards(model, self.batch(each, device=device)) for each in batches]).double()
        margin = rewards[:, 0] - rewards[:, 1]
        return {
            "loss": self._losses(rewards).mean().item(),
            "reward_accuracy": ((margin.sign() + 1) / 2).mean().item(),
            "reward_margin": margin.mean().item(),
            "reward_chosen": rewards[:, 0].mean().item(),
            "reward_rejected": rewards[:, 1].mean().item(),
            "pairs": len(rewards),
        }

    def turns(self, fields: Mapping[str, Any]) -> tuple[Turns, Turns]:
        """The row as two of the shapes that rows of one answer have.  DataError where it is none."""
        sides = [value_of(fields, self.chosen), value_of(fields, self.rejected)]
        kinds = {type(side) for side in sides}
        if kinds == {str}:
            return self._texts(fields)
        if kinds == {list}:
            return self._chats(fields, *sides)
        told = " and ".join(kind_of(side) for side in sides)
        raise DataError(f"fields {self.chosen!r} and {self.rejected!r}: both texts or both messages, not {told}")

    def _texts(self, fields: Mapping[str, Any]) -> tuple[Turns, Turns]:
        chosen, rejected = (text_of(fields, name) for name in (self.chosen, self.rejected))
        prompt = value_of(fields, self.prompt)
        if isinstance(prompt, list):
            answers = ([{"role": "assistant", "content": each}] for each in (chosen, rejected))
            return self._chats(fields, *answers)
        return Pair(text_of(fields, self.prompt), chosen), Pair(text_of(fields, self.prompt), rejected)

    def _chats(self, fields: Mapping[str, Any], chosen: Messages, rejected: Messages) -> tuple[Turns, Turns]:
        before = fields.get(self.prompt)
        if isinstance(before, str):
            begun = any(isinstance(turn, dict) and turn.get("role") == "user" for turn in chosen)
            before = None if begun else [{"role": "user", "content": before}]
        if before is not None and not isinstance(before, list):
            raise DataError(f"field {self.prompt!r}: a text or messages, not {kind_of(before)}")
        said = [[*(before or ()), *side] for side in (chosen, rejected)]
        alike = 0
        while alike < min(map(len, said)) and said[0][alike] == said[1][alike]:
            alike += 1
        one, other = (_answered(messages, alike) for messages in said)
        return one, other


def _answered(messages: Messages, alike: int) -> Chat:
    """The chat of which only what follows the common beginning is learned."""
    chat = understand({"messages": messages}, "messages")
    assert isinstance(chat, Chat)
    if not chat.messages or chat.messages[-1]["role"] != "assistant":
        raise DataError("a chosen or rejected chat does not end with a turn of the assistant")
    return replace(chat, skipped=chat.skipped | frozenset(range(alike)))


class _Teacher:
    """Rows to pairs; the shape of the first row is that of all, and says how prompts are written later."""

    def __init__(self, task: PreferenceTuning, config: DataConfig, reader: Reader) -> None:
        if reader.plain is None:
            raise ModelError("this base brings no tokenizer; load it from a folder that has one")
        problems = [
            f"data.{name}: the task {task.name} reads fields of its own; leave it out"
            for name, said in {"shape": config.shape, "loss_on": config.loss_on == "all"}.items()
            if said
        ]
        if config.max_length is not None and config.max_length > reader.limit:
            problems.append(
                f"data.max_length: {config.max_length} is above the {reader.limit} tokens that the base allows"
            )
        if problems:
            raise DataError.of(problems)
        self.task, self.config, self.limit = task, config, config.max_length or reader.limit
        self.encoder = Encoder(reader.plain)
        self.begins = reader.template is None and config.template is None
        own = own_renderer(reader.plain, config.template) if config.template else reader.template
        self.renderer = own or own_renderer(reader.plain)

    def dataset(self, rows: Sequence[Row], what: str, source: object = "") -> Dataset:
        shape = next((found for row in rows if (found := self._shape(row))), "prompt_completion")

        def read(row: Row, number: int) -> Example | str:
            turns = self.task.turns(row.fields)
            if _named(turns[0]) != shape:
                raise DataError(f"a {_named(turns[0])} row among {shape} rows; keep one shape")
            return self._pair(turns, row, number)

        return RowByRow(shape, read).dataset(rows, what, source)

    def _shape(self, row: Row) -> str | None:
        try:
            return None if row.refused else _named(self.task.turns(row.fields)[0])
        except DataError:
            return None

    def _pair(self, turns: tuple[Turns, Turns], row: Row, number: int) -> Preferred | str:
        if turns[0] == turns[1]:
            return "chosen and rejected are the same"
        sides = self.encoder([speech(each, self.renderer, self.begins, "completion") for each in turns])
        longest = max(len(side.ids) for side in sides)
        over = longest > self.limit
        if over and self.config.over_length == "error":
            raise DataError(f"{longest} tokens, more than {self.limit}; shorten it or drop what is longer")
        if over and self.config.over_length == "drop":
            return f"longer than {self.limit} tokens"
        sides = [Encoded(side.ids[: self.limit], side.labels[: self.limit]) for side in sides]
        if not all(side.labels.any() for side in sides):
            return CUT_AWAY if over else UNLEARNED
        ids, labels = (np.concatenate([getattr(side, name) for side in sides]) for name in ("ids", "labels"))
        return Preferred(ids, labels, number, row.origin, len(sides[0].ids), cut=over)


def _named(turns: Turns) -> str:
    return "messages" if isinstance(turns, Chat) else "prompt_completion"
