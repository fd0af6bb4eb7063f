"""A parameter whose value is computed at every read, for weights that are read without calling their module.

    holder.weight  ->  merged(W)            an Around edit where the family reads W itself (MultiheadAttention)
    holder.weight  ->  copy.to(W.dtype)     an Instead edit that is trained in float32 on a half-precision base

The holder's class gains a property of that name until undone; its own parameter waits, unregistered, in the Computed
that is registered in its place.
"""

from functools import cache

import torch
from torch import Tensor, nn

from lorica.models.edited import Beside, slot
from lorica.models.edits.holders import Undo


class Computed(Beside):
    base: nn.Parameter

    def value(self) -> Tensor:
        raise NotImplementedError


class Cast(Computed):
    """The trainable copy in the base's type."""

    def value(self) -> Tensor:
        return self.adapter().to(self.base.dtype)


class Merged(Computed):
    """merged(W), computed in float32 or better and given in W's type."""

    def value(self) -> Tensor:
        wide = self.base.detach().to(torch.promote_types(self.base.dtype, torch.float32))
        return self.adapter.merged(wide).to(self.base.dtype)  # type: ignore[operator]


def compute(holder: nn.Module, name: str, computed: Computed) -> Undo:
    """From now on holder.name is computed.value()."""
    holder.add_module(slot(name), computed)
    holder._parameters[name] = None
    _read_computed(holder, _names(holder) | {name})

    def undo() -> None:
        _read_computed(holder, _names(holder) - {name})
        holder._parameters[name] = computed.base
        del holder._modules[slot(name)]

    return undo


def _names(holder: nn.Module) -> frozenset[str]:
    return getattr(type(holder), "computed_names", frozenset())


def _read_computed(holder: nn.Module, names: frozenset[str]) -> None:
    plain = getattr(type(holder), "uncomputed", type(holder))
    holder.__class__ = _with_properties(plain, names) if names else plain


@cache
def _with_properties(plain: type, names: frozenset[str]) -> type:
    properties = {name: property(_reader(slot(name))) for name in names}
    known = {"__module__": plain.__module__, "__qualname__": plain.__qualname__}
    return type(plain.__name__, (plain,), {**known, **properties, "computed_names": names, "uncomputed": plain})


def _reader(registered: str):
    return lambda holder: holder._modules[registered].value()
