"""Fetched: a FrozenWeight whose numbers lie elsewhere and come for each product that reads them.

On a CPU they come into one workspace of the thread, which the next one takes; on a GPU into memory of its allocator.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lorica.kernels.elsewhere import Kept, Order, soon
from lorica.kernels.frozen_weight import DenseWeight, FrozenWeight
from lorica.kernels.native.linears import Codes
from lorica.kernels.quantised import Quantised, tensors_of, with_tensors, workspace

LINE = 64
"""Bytes that torch's allocator aligns to: matrix products may sum in another order elsewhere."""
Form = DenseWeight | Quantised


@dataclass(frozen=True, eq=False, kw_only=True)
class Fetched(FrozenWeight):
    """form: the weight without its numbers, on the meta device.  parts: its tensors by the names of their fields."""

    form: Form
    parts: Mapping[str, Kept]
    kind: torch.dtype
    place: torch.device
    order: Order

    @property
    def shape(self) -> tuple[int, ...]:
        return self.form.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.kind

    @property
    def device(self) -> torch.device:
        return self.place

    @property
    def tiled(self) -> bool:
        return self.form.tiled

    def dense(self) -> Tensor:
        return self._with({name: kept.tensor(self.place) for name, kept in self.parts.items()}).dense().to(self.kind)

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return self._here(x.dtype).product(x, bias)

    def transposed_product(self, g: Tensor, onto: Tensor | None = None) -> Tensor:
        return self._here(g.dtype).transposed_product(g, onto)

    def for_tiles(self) -> Tensor | Codes:
        return self._here(self.kind).for_tiles()

    def as_read(self, dtype: torch.dtype) -> Tensor:
        return self._here(dtype).as_read(dtype)

    def _here(self, dtype: torch.dtype) -> Form:
        """Whose products are to the bit those of the same weight where it lies on the device."""
        weight = self._arrived()
        following = self.order.read(self)
        if following is not None:
            soon(following.parts.values())
        return type(weight)(self._cast(weight.dense()).to(dtype)) if isinstance(weight, DenseWeight) else weight

    def _cast(self, W: Tensor) -> Tensor:
        if W.dtype == self.kind or self.place.type != "cpu":
            return W.to(self.kind)
        return workspace(self.shape, self.kind).copy_(W)

    def _arrived(self) -> Form:
        if self.place.type != "cpu":
            return self._with({name: kept.tensor(self.place) for name, kept in self.parts.items()})
        room = workspace((sum(_lines(kept.nbytes) for kept in self.parts.values()),), torch.uint8)
        here, at = {}, 0
        for name, kept in self.parts.items():
            part = room[at : at + kept.nbytes].view(kept.dtype).view(kept.shape)
            here[name], at = kept.into(part), at + _lines(kept.nbytes)
        return self._with(here)

    def _with(self, tensors: Mapping[str, Tensor]) -> Form:
        if isinstance(self.form, DenseWeight):
            return type(self.form)(tensors["stored"])
        return with_tensors(self.form, tensors)


def numbers_of(weight: Form) -> dict[str, Tensor]:
    """The tensors of a weight by the names of their fields."""
    return {"stored": weight.stored} if isinstance(weight, DenseWeight) else tensors_of(weight)


def form_of(weight: Form) -> Form:
    """The same without its numbers."""
    if isinstance(weight, DenseWeight):
        return type(weight)(weight.stored.to("meta"))
    return with_tensors(weight, {name: tensor.to("meta") for name, tensor in tensors_of(weight).items()})


def _lines(nbytes: int) -> int:
    return -(-nbytes // LINE) * LINE
