"""Linears that are computed together: siblings of one input, and the gated MLP.

A linear joins where nothing but its weight, its bias and a low-rank product decides what it computes; where one of them
is trained itself, watched, or edited in another way, each is called by itself.
"""

from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn

from lorica.kernels import (
    Branch,
    FrozenWeight,
    Noise,
    RowBranch,
    gated_mlp,
    in_slabs,
    rowwise,
    rowwise_swiglu,
    siblings,
    swiglu,
    tiled_linears,
)
from lorica.models.edited import AroundModule, Flow, apply
from lorica.models.frozen_linear import FrozenLinear
from lorica.models.tiled_linear import TiledLinear, is_plain


def linear(module: nn.Module, x: Tensor, flow: Flow, *, widely: bool = False) -> Tensor:
    """One linear.  widely: its output is read in float32 or better where the pass keeps documents apart."""
    return _apart((module,), x, flow, widely)[0] if flow.apart else apply(module, x, flow)


def project(modules: Sequence[nn.Module], x: Tensor, flow: Flow) -> Sequence[Tensor]:
    """Several linears of one input (q, k, v)."""
    if flow.apart:
        return _apart(modules, x, flow)
    branches = _branches(modules, flow)
    trained = [module for module in modules if _is_trained_linear(module)]
    if branches is None and len(trained) == len(modules):
        return tiled_linears(x, [module.weight for module in trained], [module.bias for module in trained])
    if branches is None:
        return [apply(module, x, flow) for module in modules]
    return siblings(x, branches, _noise(modules, flow))


def gated(gate: nn.Module, up: nn.Module, down: nn.Module, x: Tensor, flow: Flow) -> Tensor:
    """down(silu(gate(x)) * up(x))"""
    if flow.apart:
        return linear(down, rowwise_swiglu(*_apart((gate, up), x, flow)), flow)
    branches = _branches((gate, up, down), flow)
    if branches is None:
        g, u = project((gate, up), x, flow)
        return apply(down, swiglu(g, u), flow)
    of_gate, of_up, of_down = branches
    return gated_mlp(x, of_gate, of_up, of_down, _noise((gate, up, down), flow))


def _apart(modules: Sequence[nn.Module], x: Tensor, flow: Flow, widely: bool = False) -> Sequence[Tensor]:
    """Where no row may depend on the rows beside it.  Of what is no linear with terms, slabs of rows are read alone."""
    known = [row_branch(module, flow) for module in modules]
    joint = [branch for branch in known if branch is not None]
    made = iter(rowwise(x, joint, widely=widely) if joint else ())
    return [
        _with_others(module, next(made), x, flow) if branch else _slabs(module, x, flow, widely)
        for module, branch in zip(modules, known, strict=True)
    ]


def row_branch(module: nn.Module, flow: Flow) -> RowBranch | None:
    """None for an adapter that is no choice of rows, and for what is no plain linear or is watched."""
    edited = type(module) is AroundModule
    base = module._modules["base"] if edited else module
    assert base is not None
    if not _is_frozen_linear(base, training=False) or is_watched(base) or is_watched(module):
        return None
    if not edited:
        return RowBranch(FrozenWeight.of(base), base.bias)
    terms = getattr(module._modules["adapter"], "terms", None)
    return None if terms is None else RowBranch(FrozenWeight.of(base), base.bias, terms(flow, base))


def _with_others(module: nn.Module, y: Tensor, x: Tensor, flow: Flow) -> Tensor:
    """y with what adapters of rows add that is no low-rank product."""
    return module.adapter.others(y, x, module.base, flow) if type(module) is AroundModule else y  # type: ignore[operator]


def _slabs(module: nn.Module, x: Tensor, flow: Flow, widely: bool) -> Tensor:
    y = in_slabs(lambda slab: apply(module, slab, flow), x)
    return y.to(torch.promote_types(y.dtype, torch.float32)) if widely else y


def _branches(modules: Sequence[nn.Module], flow: Flow) -> list[Branch] | None:
    found = [_branch(module, flow) for module in modules]
    return [branch for branch in found if branch is not None] if all(found) else None


def _branch(module: nn.Module, flow: Flow) -> Branch | None:
    adapter = module.adapter if type(module) is AroundModule else None
    base = module.base if type(module) is AroundModule else module
    if not _is_frozen_linear(base) or is_watched(base) or is_watched(module):
        return None
    weight = FrozenWeight.of(base)
    if adapter is None:
        return Branch(weight, base.bias)
    low_rank = adapter.fusible(weight, _noise((module,), flow)) if hasattr(adapter, "fusible") else None  # type: ignore[operator]
    return None if low_rank is None else Branch(weight, base.bias, low_rank)


def _is_frozen_linear(module: nn.Module, training: bool = True) -> TypeGuard[nn.Linear]:
    """training: gradients may be asked for, and a weight that wants its own is none to fuse."""
    if is_plain(module):
        return not (training and module.weight.requires_grad)
    return issubclass(type(module), FrozenLinear)


def _is_trained_linear(module: nn.Module) -> TypeGuard[TiledLinear]:
    """Whether it is x W^T + b of tiles, of a weight that may be computed as it is read."""
    return getattr(type(module), "uncomputed", type(module)) is TiledLinear and not is_watched(module)


def _noise(modules: Sequence[nn.Module], flow: Flow) -> Noise | None:
    adapters = [module.adapter for module in modules if type(module) is AroundModule]
    return flow.noise if all(adapter.training for adapter in adapters) else None  # type: ignore[union-attr]


def is_watched(module: nn.Module) -> bool:
    """Whether somebody is to be told when the module is called."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
