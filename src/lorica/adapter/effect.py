"""Whether an adapter is what it is taken for: one that changes nothing, or whose method did not end, is told here."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lorica.adapter.installed import Modules
from lorica.adapter.plan import Plan, PlannedEdit
from lorica.methods import Method
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


def unfinished(planned: Plan, tensors: Mapping[str, Tensor]) -> str | None:
    """Why an adapter with these tensors, by file key, is not yet what its methods end with; None where it is."""
    told = (method.unfinished(_of_method(planned, tensors, method)) for method in planned.methods)
    return "; ".join(reason for reason in told if reason) or None


def _of_method(planned: Plan, tensors: Mapping[str, Tensor], method: Method) -> dict[str, dict[str, Tensor]]:
    own = [edit for edit in planned.edits if edit.method is method]
    return {edit.site.name: {held.name: tensors[key] for key, held in edit.tensors.items()} for edit in own}


def without_effect(where: str) -> str:
    return f"{where}: this adapter changes nothing; train it, or say untrained=True (--untrained)"


def not_finished(where: str, reason: str) -> str:
    return f"{where}: not finished: {reason}; or say untrained=True (--untrained)"
