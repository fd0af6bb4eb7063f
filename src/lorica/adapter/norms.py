"""How far an adapter moves each weight it sits on: || W' - W ||_F.

A low-rank update is measured from its small products alone; any other by the difference itself, in float32 or better.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lorica.adapter.inspect import update_norm
from lorica.adapter.plan import Plan, PlannedEdit
from lorica.kernels import LowRank
from lorica.models import weight_of
from lorica.models.walking import base_tensors


@torch.no_grad()
def update_norms(model: nn.Module, plan: Plan, modules: Mapping[tuple[str, str], nn.Module]) -> dict[str, float]:
    """By the name of the site; edits that change no weight (prompts, prefixes, bottlenecks) are left out."""
    originals = base_tensors(model)
    norms = {p.site.name: _norm(model, p, modules[p.key], originals) for p in plan.edits}
    return {name: norm for name, norm in norms.items() if norm is not None}


def _norm(model: nn.Module, planned: PlannedEdit, module: nn.Module, originals: Mapping[str, Tensor]) -> float | None:
    if planned.edit.place == "instead":
        return _distance(module(), originals[planned.site.name])
    factors: LowRank | None = module.factors() if hasattr(module, "factors") else None  # type: ignore[operator]
    if factors is not None:
        return update_norm(factors.A, factors.B, factors.scale)
    if planned.edit.place != "around" or not hasattr(module, "merged"):
        return None
    W = weight_of(model, planned.site).dense()
    wide = W.to(torch.promote_types(W.dtype, torch.float32))
    return _distance(module.merged(wide), wide)  # type: ignore[operator]


def _distance(after: Tensor, before: Tensor) -> float:
    wide = torch.promote_types(after.dtype, torch.float32)
    return float((after.to(wide) - before.to(wide)).norm())
