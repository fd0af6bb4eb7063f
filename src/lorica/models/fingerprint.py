"""The fingerprint of a base: SHA-256 over its tensors as they are stored, before any cast.

    for every tensor, by name:   name, type, shape, and 16 blocks of 4 KiB: the first, the last, and 14 evenly between

A tied tensor counts once.  Reading blocks alone keeps a base of many gigabytes quick; a change that avoids all 16
blocks of every tensor goes unseen, which no fine-tuned or converted checkpoint does.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from lorica.models.stored import Entry, Stored
from lorica.models.walking import base_tensors

BLOCK, BLOCKS = 4096, 16

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

Described = tuple[str, str, tuple[int, ...], Iterable[bytes]]


def fingerprint(base: nn.Module | str | Path) -> str:
    """Of the checkpoint a base was loaded from, of a folder, or of a model that was built in memory.

    An adapter attached to the model changes nothing: only the base's own tensors count.
    """
    if isinstance(base, str | Path):
        return fingerprint_of_folder(Path(base))
    loaded = getattr(base, "base_fingerprint", None)
    return loaded if isinstance(loaded, str) else _digest(_in_memory(base))


def fingerprint_of_folder(folder: Path) -> str:
    entries = sorted(Stored(folder).entries.values(), key=lambda entry: entry.name)
    return _digest((entry.name, entry.dtype, entry.shape, _blocks_of_file(entry)) for entry in entries)


def offsets(size: int) -> list[int]:
    """Where the blocks of a tensor of `size` bytes begin; all of a small tensor is read."""
    if size <= BLOCK * BLOCKS:
        return list(range(0, size, BLOCK))
    return [index * (size - BLOCK) // (BLOCKS - 1) for index in range(BLOCKS)]


def _digest(tensors: Iterable[Described]) -> str:
    digest = hashlib.sha256()
    for name, dtype, shape, blocks in tensors:
        digest.update(f"{name}\0{dtype}\0{list(shape)}\0".encode())
        for block in blocks:
            digest.update(block)
    return digest.hexdigest()


def _blocks_of_file(entry: Entry) -> Iterator[bytes]:
    size = entry.stop - entry.start
    with entry.file.open("rb") as stream:
        for offset in offsets(size):
            stream.seek(entry.start + offset)
            yield stream.read(min(BLOCK, size - offset))


def _in_memory(model: nn.Module) -> Iterator[Described]:
    for name, tensor in sorted(base_tensors(model).items()):
        yield name, NAMES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape), _blocks_of_tensor(tensor)


def _blocks_of_tensor(tensor: Tensor) -> Iterator[bytes]:
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    for offset in offsets(raw.numel()):
        yield bytes(raw[offset : offset + BLOCK].cpu().numpy())
