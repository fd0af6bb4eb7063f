"""adapter_model.safetensors, read strictly: all that its header says is checked before a tensor is made.

    length of the header, 8 bytes little-endian | header, JSON | tensors, end to end, none of them shared or left out

The header is read by a grammar of its own rather than as any JSON, so that a name cannot come twice, nothing unknown
passes, and no header takes more memory than its tensors need.  The format is safetensors' own,
https://github.com/huggingface/safetensors#format; what is accepted here, that library reads to the same tensors.
"""

import json
import math
import mmap
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from lorica.errors import AdapterError, LoricaError

Bytes = bytearray | mmap.mmap
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The types in which adapters are written; whole numbers and 8-bit types train nothing."""
LARGEST_HEADER = 16 << 20
MOST_TENSORS = 100_000
"""A pair for each of the three linears of 128 experts in 48 layers makes 36,864 tensors and 6 MB of header."""
LONGEST_SIDE = 1 << 24
"""Of a matrix without elements, whose other side no bytes of the file bound."""
LONGEST_NAME, DEEPEST, MOST_DIMENSIONS = 512, 64, 8
SHOWN = 12
"""Problems that are told one by one; the rest are counted."""

BLANK = r"[ \t\r\n]*+"
ESCAPE = (
    r"\\(?:[\"\\/bfnrt]|u(?![dD][89a-fA-F])[0-9a-fA-F]{4}"
    r"|u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})"
)
STRING = rf'"(?:[^"\\\x00-\x1f]|{ESCAPE})*+"'
NUMBER = r"(?:0|[1-9][0-9]{0,18})"
NUMBERS = rf"{NUMBER}{BLANK}(?:,{BLANK}{NUMBER}{BLANK})*+"


def _mark(mark: str) -> re.Pattern[bytes]:
    return re.compile(rf"{BLANK}{mark}{BLANK}".encode())


OPEN, CLOSE, COMMA = _mark(r"\{"), _mark(r"\}"), _mark(",")
NAME = _mark(rf"({STRING}){BLANK}:")
METADATA = _mark(rf"\{{{BLANK}(?:{STRING}{BLANK}:{BLANK}{STRING}{BLANK}(?:,(?={BLANK}\")|(?={BLANK}\}})){BLANK})*+\}}")
FIELD = _mark(
    rf'(?:"dtype"{BLANK}:{BLANK}"(?P<dtype>\w+)"'
    rf'|"shape"{BLANK}:{BLANK}\[{BLANK}(?P<shape>(?:{NUMBERS})?)\]'
    rf'|"data_offsets"{BLANK}:{BLANK}\[{BLANK}(?P<data_offsets>{NUMBER}{BLANK},{BLANK}{NUMBER}){BLANK}\])'
)
LAST = re.compile(rb"\}[ \t\r\n]*+\Z")


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of the header: its type and shape, and the bytes [start, stop) behind the header that are its own."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


def tensors(data: Bytes, where: str) -> dict[str, Tensor]:
    """The tensors in a file's bytes, over these bytes.  AdapterError naming what is damaged, empty, or not finite.

    where: what errors call the file.
    """
    entries, begin = header(data, where)
    found = {entry.name: _tensor(data, begin, entry) for entry in entries}
    _refuse(where, [f"{name} holds values that are not finite" for name, tensor in found.items() if not finite(tensor)])
    return found


def header(data: Bytes, where: str) -> tuple[tuple[Entry, ...], int]:
    """The entries of the header in the order of their bytes, and where the bytes of the first tensor begin."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 10 or length > len(data) - 8:
        raise _damaged(where, f"{len(data)} bytes are there, and the header alone says it takes {length}")
    if length > LARGEST_HEADER:
        raise AdapterError(f"{where}: a header of {length} bytes; the largest an adapter may have is {LARGEST_HEADER}")
    entries = sorted(_entries(_text(data[8 : 8 + length], where), where), key=lambda entry: (entry.start, entry.stop))
    _require_end_to_end(entries, len(data) - 8 - length, where)
    _refuse(where, [] if entries else ["holds no tensor"])
    empty = [entry.name for entry in entries if entry.start == entry.stop and not _of_rank_zero(entry.shape)]
    _refuse(where, [f"{name} is empty, as sharded training leaves it" for name in empty])
    return tuple(entries), 8 + length


def _of_rank_zero(shape: tuple[int, ...]) -> bool:
    """AdaLoRA may leave a site nothing: (0, d_in), (d_out, 0), (0, 1).  Sharded training leaves (0,) instead."""
    return len(shape) == 2 and 0 < max(shape) <= LONGEST_SIDE


def finite(tensor: Tensor) -> bool:
    """A sum that is finite is one of finite values; one that is not may have overflowed."""
    return math.isfinite(tensor.sum()) or bool(tensor.isfinite().all())


def _tensor(data: Bytes, begin: int, entry: Entry) -> Tensor:
    start, stop = begin + entry.start, begin + entry.stop
    if start == stop:
        return torch.empty(entry.shape, dtype=entry.dtype)
    aligned = start % entry.dtype.itemsize == 0
    raw = memoryview(data)[start:stop] if aligned else bytearray(data[start:stop])
    return torch.frombuffer(raw, dtype=entry.dtype).reshape(entry.shape)


def _text(raw: bytes | bytearray, where: str) -> bytes:
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        raise _damaged(where, f"byte {8 + error.start} is not UTF-8") from error
    return bytes(raw)


def _entries(text: bytes, where: str) -> Iterator[Entry]:
    seen: set[str] = set()
    position = 1 if text.startswith(b"{") else _broken(text, 0, where)
    while not LAST.match(text, position):
        position = _past(COMMA, text, position, where) if seen else position
        name, position = _name(text, position, where)
        if name in seen:
            raise _damaged(where, f"{name!r} is there twice")
        if len(seen) > MOST_TENSORS:
            raise AdapterError(f"{where}: more than {MOST_TENSORS} tensors, which no adapter has")
        seen.add(name)
        if name == "__metadata__":
            position = _past(METADATA, text, position, where)
        else:
            entry, position = _entry(name, text, position, where)
            yield entry


def _name(text: bytes, position: int, where: str) -> tuple[str, int]:
    found = NAME.match(text, position) or _broken(text, position, where)
    if len(found[1]) > LONGEST_NAME:
        raise AdapterError(f"{where}: a tensor's name takes {len(found[1])} bytes, and {LONGEST_NAME} are the most")
    try:
        name: str = json.loads(found[1])
    except ValueError:
        _broken(text, position, where)
    # Half a character and what a terminal would act on are no part of a name; nor is a path without end.
    good = name.isprintable() and name.count(".") < DEEPEST
    return (name, found.end()) if good else _broken(text, position, where)


def _entry(name: str, text: bytes, start: int, where: str) -> tuple[Entry, int]:
    fields: dict[str, bytes] = {}
    position = _past(OPEN, text, start, where)
    for number in range(3):
        position = _past(COMMA, text, position, where) if number else position
        found = FIELD.match(text, position) or _broken(text, position, where)
        fields |= {key: value for key, value in found.groupdict().items() if value is not None}
        position = found.end()
    if len(fields) < 3:
        _broken(text, start, where)
    shape, (begin, end) = _numbers(fields["shape"]), _numbers(fields["data_offsets"])
    return _entry_of(name, fields["dtype"].decode(), shape, begin, end, where), _past(CLOSE, text, position, where)


def _numbers(text: bytes) -> tuple[int, ...]:
    return tuple(map(int, text.split(b","))) if text else ()


def _entry_of(name: str, dtype: str, shape: tuple[int, ...], start: int, stop: int, where: str) -> Entry:
    if dtype not in DTYPES:
        raise AdapterError(f"{where}: {name} is stored as {dtype}; an adapter holds {', '.join(DTYPES)}")
    if not fits(shape, DTYPES[dtype], stop - start):
        raise _damaged(where, f"{name} is said to be {dtype} {list(shape)[:9]} in {stop - start} bytes")
    return Entry(name, DTYPES[dtype], shape, start, stop)


def fits(shape: tuple[int, ...], dtype: torch.dtype, size: int) -> bool:
    return len(shape) <= MOST_DIMENSIONS and math.prod(shape) * dtype.itemsize == size


def _require_end_to_end(entries: list[Entry], held: int, where: str) -> None:
    """Every byte behind the header is one tensor's: nothing overlaps, lies beyond the file, or is left out."""
    at = 0
    for entry in entries:
        if entry.start != at:
            raise _damaged(where, f"{entry.name} begins at byte {entry.start} of the tensors, where {at} is next")
        at = entry.stop
    if at != held:
        raise _damaged(where, f"the tensors take {at} bytes, and {held} are there")


def _past(pattern: re.Pattern[bytes], text: bytes, position: int, where: str) -> int:
    found = pattern.match(text, position)
    return found.end() if found else _broken(text, position, where)


def _broken(text: bytes, position: int, where: str) -> NoReturn:
    near = ascii(text[position : position + 20])[1:]
    raise _damaged(where, f"not a header of safetensors at byte {8 + position}, {near}")


def _damaged(where: str, what: str) -> AdapterError:
    return AdapterError(f"{where}: damaged ({what}); fetch or copy it again")


def _refuse(where: str, problems: list[str]) -> None:
    if problems:
        raise refusal(where, problems)


def refusal(where: str, problems: Sequence[str]) -> LoricaError:
    """The first problems one by one, the rest counted."""
    more = [f"{where}: and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    return AdapterError.of([f"{where}: {problem}" for problem in problems[:SHOWN]] + more)
