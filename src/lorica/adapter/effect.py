"""Whether an adapter does anything: one whose every update is zero answers as its base does, and is told apart here."""

import torch
from torch import Tensor, nn

from lorica.adapter.installed import Modules
from lorica.adapter.plan import Plan, PlannedEdit
from lorica.models import parameter_of


def inert(model: nn.Module, planned: Plan, modules: Modules) -> bool:
    """Whether no edit changes what the bare base computes, as far as the edits can tell."""
    return all(inert_at(_copied(model, edit), modules[edit.key]) for edit in planned.edits)


def _copied(model: nn.Module, planned: PlannedEdit) -> Tensor | None:
    """The parameter of which the edit is a copy."""
    return parameter_of(model, planned.site) if planned.edit.place == "instead" else None


def inert_at(parameter: Tensor | None, module: nn.Module) -> bool:
    """Whether one module leaves the base as it is: a copy of `parameter`, or a product of which nothing is left."""
    if parameter is not None:
        return torch.equal(module(), parameter.to(module().dtype))
    if hasattr(module, "inert"):
        return module.inert()  # type: ignore[operator]
    factors = module.factors() if hasattr(module, "factors") else None  # type: ignore[operator]
    if factors is None:
        return False
    used = factors.A.any(-1) & factors.B.any(-2)
    return factors.scale == 0 or not bool(used.any())


def without_effect(where: str) -> str:
    return f"{where}: this adapter changes nothing; train it, or say untrained=True (--untrained)"
