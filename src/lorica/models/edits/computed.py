"""A parameter whose value is computed at every read, for weights that are read without calling their module.

    holder.weight  ->  merged(W)            an Around edit where the family reads W itself (MultiheadAttention)
    holder.weight  ->  copy.to(W.dtype)     an Instead edit that is trained in float32 on a half-precision base

The holder's class gains a property of that name until undone; its own parameter waits, unregistered, in the Computed
that is registered in its place.

A module that reads a weight several times in one call (experts, one after another) is given one and the same value: it
is computed when the call begins and let go of when it ends.
"""

from collections.abc import Mapping
from contextvars import ContextVar
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from lorica.models.edited import Beside, slot
from lorica.models.edits.holders import Undo, together

_held: ContextVar[Mapping[int, Tensor]] = ContextVar("lorica_held", default=MappingProxyType({}))
"""Values of the calls that are under way here, by the identity of what computes them."""


class Computed(Beside):
    base: nn.Parameter

    def value(self) -> Tensor:
        raise NotImplementedError


class Cast(Computed):
    """The trainable copy in the base's type."""

    def value(self) -> Tensor:
        return self.adapter().to(self.base.dtype)


class Merged(Computed):
    """merged(W), computed in float32 or better and given in W's type and as W is stored."""

    def __init__(self, adapter: nn.Module, base: nn.Parameter, transposed: bool = False) -> None:
        super().__init__(adapter, base)
        self.transposed = transposed

    def value(self) -> Tensor:
        held = _held.get().get(id(self))
        return self.fresh() if held is None else held

    def fresh(self) -> Tensor:
        W = self.base.detach().to(torch.promote_types(self.base.dtype, torch.float32))
        with torch.autocast(W.device.type, enabled=False):  # it would round the sum of W and its update
            merged = self.adapter.merged(W.mT if self.transposed else W)  # type: ignore[operator]
        return (merged.mT.contiguous() if self.transposed else merged).to(self.base.dtype)


def once_a_call(reader: nn.Module, merged: Merged) -> Undo:
    """While `reader` is called, `merged` is computed once."""

    def begin(module: nn.Module, inputs: Any) -> None:
        _held.set({**_held.get(), id(merged): merged.fresh()})

    def end(module: nn.Module, inputs: Any, output: Any) -> None:
        _held.set({key: value for key, value in _held.get().items() if key != id(merged)})

    before = reader.register_forward_pre_hook(begin)
    after = reader.register_forward_hook(end, always_call=True)
    return together([before.remove, after.remove])


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
