"""Blocks whose weights are fetched as they are used: from pinned host memory, or on a CPU from a file.

What a block holds but its linears' weights is on the device: norms, biases, and all that is outside the blocks.
On a CPU a weight that the checkpoint stores as it is computed, but for its type, is read from the checkpoint itself;
one that is quantised as it is loaded goes to an unnamed file in the system's folder for temporary files.
"""

from collections.abc import Callable, Collection
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from lorica.errors import ModelError
from lorica.kernels import DenseWeight, TiledWeight
from lorica.kernels.elsewhere import File, InFile, Kept, Order, Store
from lorica.kernels.fetched import Fetched, Form, form_of, numbers_of
from lorica.kernels.quantised import Quantised
from lorica.models import frozen_linear
from lorica.models.frozen_linear import FrozenLinear
from lorica.models.stored import DTYPES, Entry


class FetchedLinear(FrozenLinear):
    def __init__(self, fetched: Fetched, bias: nn.Parameter | None) -> None:
        super().__init__(fetched.shape, bias)
        self._fetched = fetched

    def frozen_weight(self) -> Fetched:
        return self._fetched

    def quantised_weight(self) -> Quantised | None:
        """How it is stored, without its numbers."""
        form = self._fetched.form
        return None if isinstance(form, DenseWeight) else form

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FetchedLinear":
        """A cast changes what products are computed in, and a move where; what is kept stays as it is."""
        super()._apply(fn, recurse)
        held = self._fetched
        probe = fn(torch.empty(0, dtype=held.kind, device=held.place))
        form = held.form if isinstance(held.form, DenseWeight) else replace(held.form, kind=probe.dtype)
        self._fetched = replace(held, form=form, kind=probe.dtype, place=probe.device)
        return self

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, stored={self.stored_as}"


class Away:
    """Where the weights with these names go as a base is loaded, which are not on its device."""

    def __init__(self, names: Collection[str], device: torch.device, dtype: torch.dtype) -> None:
        self.names, self.device, self.dtype = frozenset(names), device, dtype
        self._order, self._files = Order(), dict[Path, File]()

    @cached_property
    def _store(self) -> Store:
        return Store(self.device)

    def put(self, model: nn.Module, name: str, weight: Form) -> None:
        """In the place of the linear `name`."""
        kept = {part: self._store.keep(tensor) for part, tensor in numbers_of(weight).items()}
        self._put(model, name, form_of(weight), kept)

    def put_stored(self, model: nn.Module, name: str, entry: Entry) -> None:
        """A dense weight of a checkpoint."""
        if self.device.type != "cpu":
            self.put(model, name, TiledWeight(entry.tensor().to(self.dtype)))
            return
        kept = InFile(self._file(entry.file), entry.start, entry.shape, DTYPES[entry.dtype])
        form = TiledWeight(torch.empty(entry.shape, dtype=kept.dtype, device="meta"))
        self._put(model, name, form, {"stored": kept})

    def _file(self, path: Path) -> File:
        if path not in self._files:
            self._files[path] = File.of(path)
        return self._files[path]

    def _put(self, model: nn.Module, name: str, form: Form, parts: dict[str, Kept]) -> None:
        bias: Any = model.get_submodule(name).bias
        fetched = Fetched(form=form, parts=parts, kind=self.dtype, place=self.device, order=self._order)
        frozen_linear.put(model, name, FetchedLinear(fetched, bias))


def hosted(layers: int, count: int) -> tuple[int, ...]:
    """Which `count` of the layers: evenly spread, so that a fetch goes on while resident blocks compute."""
    return tuple(index * layers // min(count, layers) for index in range(min(count, layers)))


def fetched_layers(model: nn.Module) -> int:
    """How many blocks of a model have weights that are fetched."""
    names = (name for name, module in model.named_modules() if isinstance(module, FetchedLinear))
    return len({next(part for part in name.split(".") if part.isdecimal()) for name in names})


def linears_of(blocks: nn.ModuleList, prefix: str, count: int) -> tuple[str, ...]:
    """Names of the weights of the linears in `count` blocks."""
    return tuple(
        f"{prefix}.{index}.{name}.weight"
        for index in hosted(len(blocks), count)
        for name, module in blocks[index].named_modules()
        if isinstance(module, nn.Linear)
    )


def refuse_foreign(base: Path | str) -> NoReturn:
    """ModelError: only our own decoder reads every weight through a FrozenWeight."""
    raise ModelError(
        f"host_layers: {base} runs on transformers, whose layers read weights of their own; only the "
        "decoder family can fetch them; leave host_layers out, or store the base smaller with quantize: nf4"
    )
