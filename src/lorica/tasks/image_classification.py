"""Image classification: each image has one of several labels.

images/cat/1.png  ->  {image: path, label: cat}        loss = sum over rows of -log softmax(logits)[label]
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from lorica.data import Answered, DataConfig, Dataset, Example, HoldOut, Row, RowByRow, Teacher
from lorica.data.shapes import text_of
from lorica.models.heads import Head, HeadKind
from lorica.models.pixels import Images, images_of, seen
from lorica.tasks import labels, scores
from lorica.tasks.contract import Draw, Reader, Task, require_rows_alone
from lorica.tasks.padded import Padded, answered, batches_by_length, wide
from lorica.tasks.writing import FieldName


@dataclass(frozen=True, eq=False)
class Picture(Answered):
    """An image by its path; its length is what it costs, in patches."""

    path: str = ""
    patches: int = 1
    images: Images | None = None

    def __len__(self) -> int:
        return self.patches

    def read(self) -> bytes:
        return sha256(Path(self.path).read_bytes()).digest()

    def content(self) -> Iterator[bytes]:
        yield self.read()
        yield self.target.tobytes()


class ImageClassification(Task):
    """image, label: the fields of a row; a folder as a source means the images in its folders, which are the labels.
    labels, least: as in classification."""

    name: ClassVar[str] = "image_classification"
    unit: ClassVar[str] = "rows"
    head_kind: ClassVar[HeadKind | None] = "image_classification"
    reads_text: ClassVar[bool] = False
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "f1")

    image: FieldName = "image"
    label: FieldName = "label"
    labels: tuple[str, ...] = ()
    least: Annotated[int, Field(ge=1)] = 1

    @property
    def needs_rows(self) -> bool:
        return not self.labels

    @property
    def prompt_field(self) -> str | None:
        return self.image

    def settled(
        self, rows: Sequence[Row], known: Sequence[str] = (), held: Sequence[Row] = ()
    ) -> "ImageClassification":
        if self.labels:
            return self
        found = labels.found(rows, self._names, least=self.least, known=known)
        labels.require_several(found, self.label, self.least)
        more = held if self.least == 1 else ()
        return self.model_copy(update={"labels": labels.with_held(found, more, self._names, known)})

    def _names(self, fields: Mapping[str, Any]) -> list[str]:
        return [self._name(fields)]

    def _name(self, fields: Mapping[str, Any]) -> str:
        return labels.name_of(labels.value_of(fields, self.label), self.label)

    def head(self, seed: int = 0) -> Head:
        return Head(kind="image_classification", outputs=len(self.labels), labels=self.labels, seed=seed)

    def sources(self, config: DataConfig) -> DataConfig:
        train = [config.train] if isinstance(config.train, str) else config.train
        held = config.eval if isinstance(config.eval, HoldOut | None) else _of_images(config.eval)
        return config.model_copy(update={"train": [_of_images(source) for source in train], "eval": held})

    def lessons(self, config: DataConfig, reader: Reader) -> Teacher:
        require_rows_alone(config, self.name)
        images, patches = images_of(reader.config, reader.folder), _patches(reader.config)

        def read(row: Row, number: int) -> Example | str:
            name, path = self._name(row.fields), text_of(row.fields, self.image)
            seen(path)
            if self.least > 1 and name not in self.labels:
                return f"a label that fewer than {self.least} training rows have"
            target = np.array(labels.number_of(name, self.labels, self.label))
            return _picture(path, target, number, row.origin, patches, images)

        return RowByRow(self.name, read)

    def batch(self, examples: Sequence[Any], *, device: torch.device, draw: Draw | None = None) -> Padded:
        pixels = examples[0].images([each.path for each in examples]).to(device)
        target = torch.from_numpy(np.stack([each.target for each in examples])).to(device)
        return Padded({"pixel_values": pixels}, target, torch.tensor([e.row for e in examples], device=device), draw)

    def units(self, batch: Padded) -> int:
        return len(batch.rows)

    def loss(self, model: nn.Module, batch: Padded) -> Tensor:
        return nn.functional.cross_entropy(_logits(model, batch), batch.target, reduction="sum")

    @torch.no_grad()
    def evaluate(self, model: nn.Module, dataset: Dataset, *, micro_batch_tokens: int) -> dict[str, float]:
        """`loss` per row, `accuracy`, `f1` (macro), `rows`."""
        device = next(model.parameters()).device
        total, said, wanted = 0.0, list[np.ndarray](), list[np.ndarray]()
        for indices in batches_by_length(model, dataset, micro_batch_tokens):
            batch = self.batch([dataset[index] for index in indices], device=device)
            logits = _logits(model, batch)
            total += nn.functional.cross_entropy(logits, batch.target, reduction="sum").item()
            said.append(logits.argmax(1).cpu().numpy())
            wanted.append(batch.target.cpu().numpy())
        found = scores.of_classes(np.concatenate(said), np.concatenate(wanted), len(self.labels))
        return {"loss": total / len(dataset), "accuracy": found["accuracy"], "f1": found["f1"], "rows": len(dataset)}

    def told(self, example: Any) -> str:
        return self.labels[int(example.target)]

    @torch.no_grad()
    def answer(self, model: nn.Module, reader: Reader, fields: Mapping[str, Any]) -> str:
        images = images_of(reader.config, reader.folder)
        picture = _picture(text_of(fields, self.image), np.array(0), 0, "prompt", 1, images)
        batch = self.batch([picture], device=next(model.parameters()).device)
        return self.labels[int(_logits(model, batch)[0].argmax())]


def _logits(model: nn.Module, batch: Padded) -> Tensor:
    pixels = batch.inputs["pixel_values"].to(next(model.parameters()).dtype)
    return wide(answered(model, Padded({"pixel_values": pixels}, batch.target, batch.rows, batch.draw)).logits)


def _picture(path: str, target: np.ndarray, row: int, origin: str, patches: int, images: Images) -> Picture:
    none = np.zeros(0, np.int32)
    return Picture(none, none.astype(np.bool_), row, origin, target, None, path, patches, images)


def _of_images(source: str) -> str:
    return f"images:{source}" if ":" not in source and Path(source).is_dir() else source


def _patches(config: Any) -> int:
    """How many patches an image is cut into, with the token of the whole."""
    size, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    return (size // patch) ** 2 + 1 if isinstance(size, int) and isinstance(patch, int) else 1
