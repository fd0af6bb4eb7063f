"""Vision and language: a text is written about an image, after a prompt where there is one.

{image: path, prompt?, completion}       loss = sum over learned tokens of -log softmax(logits[t - 1])[token t]
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from lorica.data import Answered, DataConfig, Dataset, Example, Row, RowByRow, Teacher, Tokenizer
from lorica.data.encode import Encoded, Encoder, Piece, Speech
from lorica.data.example import TokenIds
from lorica.data.lessons import CUT_AWAY
from lorica.data.shapes import text_of
from lorica.errors import DataError
from lorica.models.pixels import Images, images_of, seen
from lorica.models.seeing import Sight, sight_of, text_logits
from lorica.tasks.contract import Draw, Reader, Task, require_rows_alone
from lorica.tasks.padded import (
    NO_TARGET,
    Padded,
    answered,
    batches_by_length,
    learned_answers,
    learned_loss,
    padded,
)
from lorica.tasks.writing import FieldName, filled_text


@dataclass(frozen=True, eq=False)
class Seen(Answered):
    """A text with its image by path.  `target` (length,) is the token that each place predicts.  `question` is what an
    encoder reads, where the base has one; `beside` are the vectors of an image that is no part of the text."""

    path: str = ""
    images: Images | None = None
    question: TokenIds | None = None
    beside: int = 0

    def __len__(self) -> int:
        return len(self.input_ids) + (0 if self.question is None else len(self.question)) + self.beside

    def read(self) -> bytes:
        asked = b"" if self.question is None else self.question.tobytes()
        return super().read() + asked + sha256(Path(self.path).read_bytes()).digest()

    def content(self) -> Iterator[bytes]:
        yield from super().content()
        yield b"" if self.question is None else self.question.astype("<i4").tobytes()
        yield sha256(Path(self.path).read_bytes()).digest()

    @property
    def text(self) -> Answered:
        return Answered(self.input_ids, self.labels, self.row, self.origin, self.target)

    @property
    def asked(self) -> Answered:
        assert self.question is not None
        none = np.zeros(len(self.question), np.bool_)
        return Answered(self.question, none, self.row, self.origin, np.array(0))


class VisionLanguage(Task):
    """image, prompt, completion: the fields of a row; a row may leave out the prompt, but for a base of questions.
    max_tokens: of an answer."""

    name: ClassVar[str] = "vision_language"
    unit: ClassVar[str] = "label tokens"
    metrics: ClassVar[tuple[str, ...]] = ("perplexity", "exact_match")

    image: FieldName = "image"
    prompt: FieldName = "prompt"
    completion: FieldName = "completion"
    max_tokens: Annotated[int, Field(ge=1)] = 64

    @property
    def writes_on(self) -> bool:
        return False

    @property
    def prompt_field(self) -> str | None:
        return self.image

    def lessons(self, config: DataConfig, reader: Reader) -> Teacher:
        require_rows_alone(config, self.name)
        writer = _Writer.of(self, config, reader)

        def read(row: Row, number: int) -> Example | str:
            problems = []
            for check in (lambda: seen(text_of(row.fields, self.image)), lambda: writer.texts(row.fields)):
                try:
                    check()
                except DataError as problem:
                    problems.append(str(problem))
            if problems:
                raise DataError("; ".join(problems))
            return writer(row.fields, number, row.origin)

        return RowByRow(self.name, read)

    def batch(self, examples: Sequence[Any], *, device: torch.device, draw: Draw | None = None) -> Padded:
        examples = sorted(examples, key=len)
        said = padded([each.text for each in examples], device=device, draw=draw, places=True)
        inputs = said.inputs
        if examples[0].question is not None:
            written = {f"decoder_{name}": value for name, value in inputs.items()}
            inputs = padded([each.asked for each in examples], device=device).inputs | written
        pixels = examples[0].images([each.path for each in examples]).to(device)
        return Padded({**inputs, "pixel_values": pixels}, said.target, said.rows, draw)

    def units(self, batch: Padded) -> int:
        return int((batch.target != NO_TARGET).sum())

    def loss(self, model: nn.Module, batch: Padded) -> Tensor:
        return learned_loss(model, batch.target, lambda: _logits(model, batch))

    @torch.no_grad()
    def evaluate(self, model: nn.Module, dataset: Dataset, *, micro_batch_tokens: int) -> dict[str, float]:
        """`loss` per label token, `perplexity`, `exact_match` (the share of rows that greedy writing would give back
        whole: each learned token is the likeliest behind those before it), `rows`, `label_tokens`."""
        device = next(model.parameters()).device
        total, units, exact = 0.0, 0, 0
        for indices in batches_by_length(model, dataset, micro_batch_tokens):
            batch = self.batch([dataset[index] for index in indices], device=device)
            losses, right = learned_answers(model, batch.target, lambda batch=batch: _logits(model, batch))
            total += losses.sum().item()
            units += len(losses)
            exact += int(right.all(1).sum())
        loss, rows = total / units, len(dataset)
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "exact_match": exact / rows,
            "rows": rows,
            "label_tokens": units,
        }

    @torch.no_grad()
    def answer(self, model: nn.Module, reader: Reader, fields: Mapping[str, Any]) -> str:
        """The likeliest text, token by token, of at most `max_tokens`; the image is read again for each."""
        writer = _Writer.of(self, DataConfig(train="prompt", over_length="error"), reader)
        device, tokens = next(model.parameters()).device, list[int]()
        while len(tokens) < self.max_tokens:
            batch = self.batch([writer.begun(fields, tokens)], device=device)
            logits = _logits(model, batch)[0, -1]
            if writer.sight.token_id is not None:
                logits[writer.sight.token_id] = -torch.inf
            token = int(logits.argmax())
            if token == writer.sight.end:
                break
            tokens.append(token)
        return reader.tokenizer.decode(tokens, skip_special_tokens=True).strip()


@dataclass(frozen=True)
class _Ended:
    """A tokenizer whose texts begin and end as this base's do."""

    inner: Tokenizer
    bos_token_id: int | None
    eos_token_id: int | None

    def encode(self, text: str, /) -> list[int]:
        return self.inner.encode(text)

    def decode(self, ids: Sequence[int], /) -> str:
        return self.inner.decode(ids)


@dataclass(frozen=True)
class _Writer:
    """Rows as the base reads them."""

    task: VisionLanguage
    sight: Sight
    reader: Reader
    images: Images
    encoder: Encoder
    config: DataConfig

    @classmethod
    def of(cls, task: VisionLanguage, config: DataConfig, reader: Reader) -> "_Writer":
        assert reader.plain is not None
        if config.max_length is not None and config.max_length > reader.limit:
            raise DataError(
                f"data.max_length: {config.max_length} is above the {reader.limit} tokens that the base allows"
            )
        sight = sight_of(reader.config, reader.tokenizer, reader.folder)
        images = images_of(reader.config, reader.folder)
        return cls(task, sight, reader, images, Encoder(_Ended(reader.plain, sight.begin, sight.end)), config)

    def texts(self, fields: Mapping[str, Any]) -> tuple[str, str]:
        """(prompt, completion).  DataError where they are missing, empty, or show more than the row's image."""
        completion = filled_text(fields, self.task.completion)
        if self.sight.token is not None and self.sight.token in completion:
            raise DataError(f"field {self.task.completion!r}: holds {self.sight.token}, which stands for the image")
        return self.prompt(fields), completion

    def prompt(self, fields: Mapping[str, Any]) -> str:
        """With as many tokens for the image as it takes, in front where the prompt does not say where."""
        if self.sight.kind == "answers":
            return filled_text(fields, self.task.prompt)
        text = text_of(fields, self.task.prompt) if fields.get(self.task.prompt) is not None else ""
        token = self.sight.token
        if token is None:
            return text
        if text.count(token) > 1:
            raise DataError(f"field {self.task.prompt!r}: {text.count(token)} times {token}; a row has one image")
        return (text if token in text else f"{token}\n{text}").replace(token, token * self.sight.places)

    def __call__(self, fields: Mapping[str, Any], number: int, origin: str) -> Seen | str:
        """The example of a row, or why it is dropped."""
        prompt, completion = self.texts(fields)
        said = "" if self.sight.kind == "answers" else prompt
        pieces = (Piece(said, learned=self.config.loss_on == "all"), Piece(completion, learned=True, ends=True))
        (written,) = self.encoder([Speech(pieces)])
        if self.sight.token_id is not None:
            written.labels[written.ids == self.sight.token_id] = False
        fitting = self._fitting(written)
        if isinstance(fitting, str):
            return fitting
        return replace(self._seen(fields, prompt, fitting, number, origin), cut=fitting is not written)

    def begun(self, fields: Mapping[str, Any], tokens: Sequence[int]) -> Seen:
        """The prompt with the tokens written so far."""
        prompt = self.prompt(fields)
        (written,) = self.encoder([Speech((Piece("" if self.sight.kind == "answers" else prompt, learned=False),))])
        ids = np.concatenate([written.ids, np.array(tokens, np.int32)])
        return self._seen(fields, prompt, Encoded(ids, np.zeros(len(ids), np.bool_)), 0, "prompt")

    def _fitting(self, written: Encoded) -> Encoded | str:
        limit = self.config.max_length or self.reader.limit
        if len(written.ids) <= limit:
            return written
        if self.config.over_length == "error":
            raise DataError(f"{len(written.ids)} tokens, more than {limit}; shorten it or drop what is longer")
        if self.config.over_length == "drop":
            return f"longer than {limit} tokens"
        cut = Encoded(written.ids[:limit], written.labels[:limit])
        return cut if cut.labels.any() else CUT_AWAY

    def _seen(self, fields: Mapping[str, Any], prompt: str, written: Encoded, number: int, origin: str) -> Seen:
        learned, ids = written.labels[1:], written.ids[1:]
        target = np.append(np.where(learned, ids, NO_TARGET), NO_TARGET)
        question = self._question(prompt) if self.sight.kind == "answers" else None
        beside = self.sight.patches - self.sight.places
        path = text_of(fields, self.task.image)
        return Seen(written.ids, written.labels, number, origin, target, None, path, self.images, question, beside)

    def _question(self, prompt: str) -> TokenIds:
        return np.array(self.reader.tokenizer(prompt, verbose=False)["input_ids"], dtype=np.int32)


def _logits(model: nn.Module, batch: Padded) -> Tensor:
    """(B, L, vocabulary) of what is written."""
    pixels = batch.inputs["pixel_values"].to(next(model.parameters()).dtype)
    shown = Padded({**batch.inputs, "pixel_values": pixels}, batch.target, batch.rows, batch.draw)
    return text_logits(model, lambda: answered(model, shown))
