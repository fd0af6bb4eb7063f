"""The fingerprint of a base: SHA-256 over its tensors as they are stored, before any cast.

    for every tensor, by name:   name, type, shape, and 16 blocks of 4 KiB: the first, the last, and 14 evenly between

A tied tensor counts once.  Reading blocks alone keeps a base of many gigabytes quick; a change that avoids all 16
blocks of every tensor goes unseen, which no fine-tuned or converted checkpoint does.  `whole_digest` reads every byte.
Both are remembered by the identity of the files (`digests.py`).
"""

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn

from lorica.models import digests
from lorica.models.stored import Entry, Stored
from lorica.models.walking import base_tensors

BLOCK, BLOCKS = 4096, 16
SAMPLED, WHOLE = "sampled 1", "whole 1"
"""The kinds of digest, with the version of each, as they are remembered."""
CHUNK = 1 << 24

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
    return loaded if isinstance(loaded, str) else fingerprint_in_memory(base)


def fingerprint_in_memory(model: nn.Module) -> str:
    """Of the base's tensors as they are now, wherever they came from."""
    return _digest(_in_memory(model))


def fingerprint_of_folder(folder: Path) -> str:
    stored = Stored(folder)
    return digests.remembered(SAMPLED, stored.files, lambda: _digest(_sampled(stored)))


def whole_digest(folder: Path, at_most: int | None = None) -> str | None:
    """SHA-256 over name, type, shape and SHA-256 of all bytes of every tensor.

    None where the files are larger than `at_most` bytes, unless the digest was computed before.
    """
    stored = Stored(folder)
    if at_most is not None and sum(file.stat().st_size for file in stored.files) > at_most:
        return digests.recalled(WHOLE, stored.files)
    return digests.remembered(WHOLE, stored.files, lambda: _whole(stored))


def _sampled(stored: Stored) -> Iterator[Described]:
    for entry in _in_order(stored):
        yield entry.name, entry.dtype, entry.shape, _blocks_of_file(entry)


def _whole(stored: Stored) -> str:
    entries = _in_order(stored)
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(_sha256, entries))
    return _digest((e.name, e.dtype, e.shape, (found,)) for e, found in zip(entries, hashes, strict=True))


def _in_order(stored: Stored) -> list[Entry]:
    return sorted(stored.entries.values(), key=lambda entry: entry.name)


def _sha256(entry: Entry) -> bytes:
    digest, left = hashlib.sha256(), entry.stop - entry.start
    with entry.file.open("rb") as stream:
        stream.seek(entry.start)
        while left and (chunk := stream.read(min(CHUNK, left))):
            digest.update(chunk)
            left -= len(chunk)
    return digest.digest()


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
