"""Merging: the adapter becomes part of the weights, W' = merged(W), and the model is plain again.

In place on a model, or shard by shard from one checkpoint folder to another, where no more than one tensor and the
shard being written are in memory.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lorica.adapter.plan import Plan, PlannedEdit
from lorica.errors import AdapterError
from lorica.models import parameter_of, weight_of

Modules = Mapping[tuple[str, str], nn.Module]


def require_mergeable(plan: Plan, modules: Modules) -> None:
    """AdapterError naming every edit that no weight can hold."""
    bad = sorted({p.method.kind for p in plan.edits if p.key in modules and not _has_merged(p, modules[p.key])})
    if bad:
        raise AdapterError(f"{', '.join(bad)} cannot be merged: what it adds is no weight; keep the adapter as it is")


def _has_merged(planned: PlannedEdit, module: nn.Module) -> bool:
    return planned.edit.place == "instead" or (planned.edit.place == "around" and hasattr(module, "merged"))


def into(model: nn.Module, plan: Plan, modules: Modules) -> None:
    """Puts the merged weights into a model from which the adapter has been taken off."""
    with torch.no_grad():
        for planned in plan.edits:
            if planned.edit.place == "instead":
                _put_copy(model, planned, modules[planned.key])
            else:
                _put_merged(model, planned, modules[planned.key])


def merged_weight(module: nn.Module, weight: Tensor, transposed: bool = False) -> Tensor:
    """W as stored -> merged W as stored, computed in float32 or better, in W's type."""
    wide = (weight.T if transposed else weight).to(torch.promote_types(weight.dtype, torch.float32))
    merged = module.merged(wide)  # type: ignore[operator]
    return (merged.T if transposed else merged).to(weight.dtype).contiguous()


def _put_merged(model: nn.Module, planned: PlannedEdit, module: nn.Module) -> None:
    stored = weight_of(model, planned.site)
    holder = model.get_submodule(planned.site.name)
    before = holder.get_parameter("weight")
    holder.weight = nn.Parameter(
        merged_weight(module, before.detach(), stored.transposed), requires_grad=before.requires_grad
    )
    if any(parameter is before for parameter in model.parameters()):
        _untie(model)


def _put_copy(model: nn.Module, planned: PlannedEdit, module: nn.Module) -> None:
    before = parameter_of(model, planned.site)
    after = nn.Parameter(module().detach().to(before.dtype), requires_grad=before.requires_grad)
    if planned.site.alone:
        owner, _, leaf = planned.site.name.rpartition(".")
        model.get_submodule(owner)._parameters[leaf] = after
        _untie(model)
        return
    for holder in model.modules():
        for name, held in holder._parameters.items():
            if held is before:
                holder._parameters[name] = after


def _untie(model: nn.Module) -> None:
    """Another place still holds the weight as it was: it must not be tied again when the model is saved and loaded."""
    config = getattr(model, "config", None)
    if config is not None and hasattr(config, "tie_word_embeddings"):
        config.tie_word_embeddings = False
