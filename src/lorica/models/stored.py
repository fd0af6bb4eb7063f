"""The tensors of a checkpoint as they lie in its safetensors files, read shard by shard through a memory map."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from lorica.errors import ModelError
from lorica.models.quiet import first_line

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The types of tensor that a base may be stored in, by the names in a safetensors header."""


@dataclass(frozen=True)
class Entry:
    """One stored tensor: its type as the file names it, its shape, and the bytes of its file that are its own."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int

    def bytes(self) -> bytes:
        with self.file.open("rb") as stream:
            stream.seek(self.start)
            return stream.read(self.stop - self.start)

    def tensor(self) -> torch.Tensor:
        """Read into memory of its own.  Pages of a memory map would count as the process's until the file is closed.

        ModelError where the file has become shorter.
        """
        if self.start == self.stop:
            return torch.empty(self.shape, dtype=DTYPES[self.dtype])
        held = bytearray(self.stop - self.start)
        with self.file.open("rb") as stream:
            stream.seek(self.start)
            if stream.readinto(held) != len(held):
                raise ModelError(f"{self.file}: ends within {self.name}; fetch or copy the file again")
        return torch.frombuffer(held, dtype=DTYPES[self.dtype]).view(self.shape)


@dataclass(frozen=True)
class Stored:
    """The checkpoint of a folder.  ModelError when it has no whole safetensors weights."""

    folder: Path

    @cached_property
    def files(self) -> tuple[Path, ...]:
        index = self.folder / INDEX
        if index.is_file():
            return tuple(_indexed(index))
        if (self.folder / SINGLE).is_file():
            return (self.folder / SINGLE,)
        others = sorted(self.folder.glob("*.safetensors"))
        if len(others) == 1:
            return (others[0],)
        raise ModelError(_without_weights(self.folder))

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Every tensor by name, from the headers alone."""
        found: dict[str, Entry] = {}
        for file in self.files:
            for entry in _header(file):
                if entry.name in found:
                    raise ModelError(f"{file}: holds {entry.name!r}, which {found[entry.name].file.name} holds as well")
                found[entry.name] = entry
        return found

    @property
    def dtype(self) -> torch.dtype:
        """Of the first stored tensor of a floating type."""
        floating = (DTYPES.get(entry.dtype) for entry in self.entries.values())
        return next((dtype for dtype in floating if dtype is not None and dtype.is_floating_point), torch.float32)

    def named(self, parameter: str, prefix: str = "") -> str | None:
        """The stored name of a parameter; None where there is none.  Checkpoints of a bare model leave out the prefix
        under which a model with a head holds it, or add it."""
        names = (parameter, parameter.removeprefix(f"{prefix}."), f"{prefix}.{parameter}")
        return next((name for name in names if name in self.entries), None)

    def same(self, first: str, second: str) -> bool:
        """Whether two stored tensors are equal to the bit."""
        entries = [self.entries[name] for name in (first, second)]
        return entries[0].shape == entries[1].shape and entries[0].bytes() == entries[1].bytes()

    def shards(self) -> Iterator["Shard"]:
        """The files one after another, each opened while it is the current one."""
        for file in self.files:
            with _opened(file) as opened:
                yield Shard(opened)


@dataclass(frozen=True)
class Shard:
    opened: Any

    def names(self) -> list[str]:
        return list(self.opened.keys())

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor over the memory map: copy it before the file is closed."""
        return self.opened.get_tensor(name)


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            yield opened
    except SafetensorError as error:
        raise ModelError(f"{file}: damaged ({first_line(error)}); fetch or copy the file again") from error


def _indexed(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index}: not an index of safetensors files; fetch or copy it again") from error
    outside = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if outside:
        raise ModelError(f"{index}: names files outside its folder ({outside[0]!r})")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ModelError(f"{index.parent}: {len(missing)} of {len(names)} shards are missing, first {missing[0]}")
    return [index.parent / name for name in names]


def _header(file: Path) -> list[Entry]:
    """Names, types and places of a file's tensors.  ModelError when the file is not whole."""
    with _opened(file):
        pass
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    return [
        Entry(name, entry["dtype"], tuple(entry["shape"]), file, *(8 + length + at for at in entry["data_offsets"]))
        for name, entry in header.items()
    ]


def _without_weights(folder: Path) -> str:
    if any(folder.glob("*.safetensors")):
        return f"{folder}: several safetensors files and no {INDEX}; add the index or leave one file"
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        return (
            f"{folder}: only pickled weights, which can run code when read; convert them once where you trust them: "
            "AutoModel.from_pretrained(...).save_pretrained(...) of transformers writes safetensors"
        )
    return f"{folder}: no safetensors weights; a folder with {SINGLE} or {INDEX} is needed"
