"""Linears that are computed together: siblings of one input, and the gated MLP.

A linear joins where nothing but its weight, its bias and a low-rank product decides what it computes; where one of them
is trained itself, watched, or edited in another way, each is called by itself.
"""

from collections.abc import Sequence
from typing import TypeGuard

from torch import Tensor, nn

from lorica.kernels import Branch, FrozenWeight, Noise, gated_mlp, siblings, swiglu
from lorica.models.edited import AroundModule, Flow, apply
from lorica.models.frozen_linear import FrozenLinear


def project(modules: Sequence[nn.Module], x: Tensor, flow: Flow) -> Sequence[Tensor]:
    """Several linears of one input (q, k, v)."""
    branches = _branches(modules, flow)
    if branches is None:
        return [apply(module, x, flow) for module in modules]
    return siblings(x, branches, _noise(modules, flow))


def gated(gate: nn.Module, up: nn.Module, down: nn.Module, x: Tensor, flow: Flow) -> Tensor:
    """down(silu(gate(x)) * up(x))"""
    branches = _branches((gate, up, down), flow)
    if branches is None:
        g, u = project((gate, up), x, flow)
        return apply(down, swiglu(g, u), flow)
    of_gate, of_up, of_down = branches
    return gated_mlp(x, of_gate, of_up, of_down, _noise((gate, up, down), flow))


def _branches(modules: Sequence[nn.Module], flow: Flow) -> list[Branch] | None:
    found = [_branch(module, flow) for module in modules]
    return [branch for branch in found if branch is not None] if all(found) else None


def _branch(module: nn.Module, flow: Flow) -> Branch | None:
    adapter = module.adapter if type(module) is AroundModule else None
    base = module.base if type(module) is AroundModule else module
    if not _is_frozen_linear(base) or _is_watched(base) or _is_watched(module):
        return None
    weight = FrozenWeight.of(base)
    if adapter is None:
        return Branch(weight, base.bias)
    low_rank = adapter.fusible(weight, _noise((module,), flow)) if hasattr(adapter, "fusible") else None  # type: ignore[operator]
    return None if low_rank is None else Branch(weight, base.bias, low_rank)


def _is_frozen_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    kind = type(module)  # an edited module passes for its base's
    return issubclass(kind, FrozenLinear) or (kind is nn.Linear and not module.weight.requires_grad)


def _noise(modules: Sequence[nn.Module], flow: Flow) -> Noise | None:
    adapters = [module.adapter for module in modules if type(module) is AroundModule]
    return flow.noise if all(adapter.training for adapter in adapters) else None  # type: ignore[union-attr]


def _is_watched(module: nn.Module) -> bool:
    """Whether somebody is to be told when the module is called."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)
