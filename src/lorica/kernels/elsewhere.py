"""Tensors kept elsewhere than on their device, byte for byte: in host memory, pinned beside a GPU, or where the device
is the CPU in a file, whose pages the system may take back.

A `Kept` is the place of one tensor.  What is read after what is learned while it is read, so that a file's next tensor
is asked for while the last one is used.
"""

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from lorica.durable import reporting
from lorica.errors import RequestError, RunError

MEMORY = {"tmpfs", "ramfs"}
"""File systems that are memory themselves."""
PAGE = 4096
"""Bytes; tensors in a file begin at multiples of it."""


class Kept(ABC):
    """A tensor of this shape and type, elsewhere."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.shape, self.dtype = tuple(shape), dtype
        self.nbytes = prod(self.shape) * dtype.itemsize

    @abstractmethod
    def into(self, here: Tensor) -> Tensor:
        """What is kept, read into `here`, contiguous."""

    @abstractmethod
    def take(self, here: Tensor) -> None:
        """Keeps this from now on."""

    def soon(self) -> None:
        """It is read next."""
        return

    def tensor(self, device: torch.device | str = "cpu") -> Tensor:
        """A new tensor on a device."""
        return self.into(torch.empty(self.shape, dtype=self.dtype, device=device))


class OnHost(Kept):
    """In host memory, pinned where a GPU is to copy it; copies to and from a GPU are in the order of its stream."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, pinned: bool) -> None:
        super().__init__(shape, dtype)
        self.held = torch.empty(self.shape, dtype=dtype, pin_memory=pinned)

    def into(self, here: Tensor) -> Tensor:
        if here.device.type == "cpu" and self.held.is_pinned():
            torch.cuda.synchronize()  # a copy to the host may still be under way
        return here.copy_(self.held, non_blocking=True)

    def take(self, here: Tensor) -> None:
        self.held.copy_(here, non_blocking=True)


class InFile(Kept):
    """`nbytes` of an open file from `start` on."""

    def __init__(self, file: "File", start: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__(shape, dtype)
        self.file, self.start = file, start

    def into(self, here: Tensor) -> Tensor:
        if here.device.type != "cpu":
            return here.copy_(self.tensor())
        self.file.read(_bytes(here), self.start)
        return here

    def take(self, here: Tensor) -> None:
        self.file.write(_bytes(here.detach().cpu().contiguous()), self.start)

    def soon(self) -> None:
        if self.nbytes and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.file.descriptor, self.start, self.nbytes, os.POSIX_FADV_WILLNEED)


class Passing(InFile):
    """Its place in the file is another's once nobody holds it."""

    def __del__(self) -> None:
        self.file.let_go(self.start, self.nbytes)


class File:
    """A file by its place, read or written without a position."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        with stream:
            self.path, self.descriptor = path, os.dup(stream.fileno())
        self._free: dict[int, list[int]] = {}
        self._end = 0

    def __del__(self) -> None:
        os.close(self.descriptor)

    @classmethod
    def of(cls, path: Path) -> "File":
        """One that is there, to read."""
        with reporting(path):
            return cls(path, path.open("rb"))

    @classmethod
    def unnamed(cls, folder: Path) -> "File":
        """A new one that goes with the process, however that ends.  RequestError where the folder is memory itself."""
        if file_system(folder) in MEMORY:
            raise RequestError(
                f"{folder}: is memory itself, so that nothing is gained by a file there; set TMPDIR, or the output of "
                "the run, to a folder on a disk"
            )
        with reporting(folder):
            return cls(folder, tempfile.TemporaryFile(dir=folder))  # type: ignore[arg-type]

    def place(self, nbytes: int) -> int:
        """Where so many bytes go: a place that was let go of, or the end.

        Places are of powers of two, so that sizes which differ from step to step find one: what is not written of them
        takes no room on the disk.
        """
        if places := self._free.get(_class(nbytes)):
            return places.pop()
        start, self._end = self._end, self._end + _class(nbytes)
        return start

    def let_go(self, start: int, nbytes: int) -> None:
        self._free.setdefault(_class(nbytes), []).append(start)

    def read(self, into: memoryview, start: int) -> None:
        done = 0
        with reporting(self.path):
            while done < len(into):
                count = os.preadv(self.descriptor, [into[done:]], start + done)
                if not count:
                    raise RunError(f"{self.path}: ends within what is read from it; fetch or copy the file again")
                done += count

    def write(self, what: memoryview, start: int) -> None:
        done = 0
        with reporting(self.path, len(what)):
            while done < len(what):
                done += os.pwrite(self.descriptor, what[done:], start + done)


class Store:
    """Room beside a device: host memory of a GPU; an unnamed file in `folder` (None: the system's) beside the CPU."""

    def __init__(self, device: torch.device, folder: Path | None = None) -> None:
        self.device = device
        self._file = File.unnamed(folder or Path(tempfile.gettempdir())) if device.type == "cpu" else None

    def room(self, shape: tuple[int, ...], dtype: torch.dtype, passing: bool = False) -> Kept:
        """For one tensor; `passing`: until nobody holds it."""
        if self._file is None:
            return OnHost(shape, dtype, pinned=self.device.type == "cuda")
        start = self._file.place(prod(shape) * dtype.itemsize)
        return (Passing if passing else InFile)(self._file, start, shape, dtype)

    def keep(self, tensor: Tensor, passing: bool = False) -> Kept:
        kept = self.room(tuple(tensor.shape), tensor.dtype, passing)
        kept.take(tensor)
        return kept


class Order:
    """What is read next, by what was read last time after the same two."""

    def __init__(self) -> None:
        self._after: dict[tuple[Any, Any], Any] = {}
        self._last: tuple[Any, Any] = (None, None)

    def read(self, this: Any) -> Any:
        self._after[self._last] = this
        self._last = (self._last[1], this)
        return self._after.get(self._last)


def soon(kept: Iterable[Kept]) -> None:
    for each in kept:
        each.soon()


def file_system(folder: Path) -> str:
    """The kind of the one that a folder is on; empty where the system does not tell."""
    place = folder.resolve()
    try:
        lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return ""
    above = [(Path(where), kind) for _, where, kind, *_ in lines if place.is_relative_to(where)]
    return max(above, key=lambda each: len(each[0].parts), default=(place, ""))[1]


def _class(nbytes: int) -> int:
    return max(1 << (nbytes - 1).bit_length(), PAGE)


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().view(-1).view(torch.uint8).numpy().data
