"""Merging: the adapter becomes part of the weights, W' = merged(W), and the model is plain again.

A quantised weight is made dense in the type it computes in, and stays so: never quantised anew.

In place on a model, or shard by shard from one checkpoint folder to another, where no more than one tensor and the
shard being written are in memory.  Either way the merged model answers the probe that the adapted one answered.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lorica.adapter.installed import Installed, Modules, Undo, undone
from lorica.adapter.plan import Plan, PlannedEdit
from lorica.adapter.proof import Comparison, Proof, Record, compared
from lorica.errors import AdapterError, ModelError
from lorica.models import Probe, numerics, parameter_of, weight_of
from lorica.models.numerics import rounding
from lorica.models.quantised import plain_linear

LEFT = 0.5
"""The least share of the adapter's effect that may be left once the weights are rounded to their type."""


def require_mergeable(plan: Plan, modules: Modules) -> None:
    """AdapterError naming every edit that no weight can hold."""
    _refuse(p for p in plan.edits if p.key in modules and not _has_merged(p, modules[p.key]))


def require_in_weights(plan: Plan) -> None:
    """As `require_mergeable`, as far as is known before any module is built."""
    _refuse(p for p in plan.edits if p.edit.place not in ("around", "instead"))


def _refuse(unmergeable: Iterable[PlannedEdit]) -> None:
    bad = sorted({planned.method.kind for planned in unmergeable})
    if bad:
        raise AdapterError(f"{', '.join(bad)} cannot be merged: what it adds is no weight; keep the adapter as it is")


def _has_merged(planned: PlannedEdit, module: nn.Module) -> bool:
    return planned.edit.place == "instead" or (planned.edit.place == "around" and hasattr(module, "merged"))


@dataclass(eq=False)
class Swaps:
    """Parameters that stand in the place of a base's own, until they are settled or taken back.

    Without `kept`, each of the base's own is let go of at once, and cannot be taken back.
    """

    model: nn.Module
    kept: bool = True
    pairs: list[tuple[nn.Parameter, nn.Parameter]] = field(default_factory=list)
    undos: list[Undo] = field(default_factory=list)

    def put(self, holder: nn.Module, name: str, before: nn.Parameter, after: nn.Parameter) -> None:
        setattr(holder, name, after)
        if self.kept:
            self.pairs.append((before, after))
            self.undos.append(lambda: setattr(holder, name, before))

    def put_linear(self, name: str, W: Tensor) -> None:
        """A plain linear with this weight in the place of one that is quantised or elsewhere."""
        before = self.model.get_submodule(name)
        self.model.set_submodule(name, plain_linear(before, W))  # type: ignore[arg-type]
        if self.kept:
            self.undos.append(lambda: self.model.set_submodule(name, before))

    def take_back(self) -> None:
        undone(self.undos)

    def settle(self) -> None:
        """The model is another base from now on: no name or fingerprint of the old one stays."""
        for before, after in self.pairs:
            after.requires_grad_(before.requires_grad)
        forget_origin(self.model)


def proven(edits: Installed, proof: Record) -> tuple[Comparison | None, Swaps]:
    """Merged weights in place of the base's, the edits taken off; after an AdapterError all is as it was."""
    edits.take()
    swaps = Swaps(edits.model)
    try:
        _swap(swaps, edits.plan, edits.modules)
        comparison = checked(edits.model, proof)
    except BaseException:
        swaps.take_back()
        edits.put()
        raise
    return comparison, swaps


def unproven(edits: Installed) -> Swaps:
    """Merged weights in a model from which the edits were taken off, one weight more than the model in memory."""
    swaps = Swaps(edits.model, kept=False)
    _swap(swaps, edits.plan, edits.modules)
    return swaps


def checked(merged: nn.Module, proof: Record) -> Comparison | None:
    """As `apart`; AdapterError where rounding does not explain the distance."""
    found, now = apart(merged, proof), numerics(merged)
    if found is None:
        return None
    if not found.within_rounding:
        raise AdapterError(
            f"merge: the outputs move by {found.deviation:.1e} of the largest, and rounding to {now['dtype']} explains "
            f"{found.allowed:.1e}; keep the adapter as it is"
        )
    if found.share < LEFT:
        raise AdapterError(
            f"merge: weights rounded to {now['dtype']} keep {found.share:.0%} of the adapter's effect; keep the "
            "adapter as it is, or merge in float32: lorica merge --dtype float32, or load_base(..., dtype='float32')"
        )
    return found


def apart(merged: nn.Module, proof: Record) -> Comparison | None:
    """The merged model's answers beside the adapted one's; None where there is nothing to compare with."""
    if not isinstance(proof, Proof):
        return None
    now = numerics(merged)
    try:
        answers = Probe.of(merged).read(merged)
    except ModelError as error:
        raise AdapterError(f"merge: {error}") from error
    return compared(proof, proof.bare, answers, now, rounding(merged, proof.numerics, now))


def forget_origin(model: Any) -> None:
    for name in ("base_fingerprint", "base_digest"):
        if hasattr(model, name):
            delattr(model, name)
    if hasattr(model, "source"):
        model.source = model.quantised_here = None
    for holder in (model, getattr(model, "config", None)):
        for name in ("name_or_path", "_name_or_path"):
            if getattr(holder, name, None):
                setattr(holder, name, "")


def _swap(swaps: Swaps, plan: Plan, modules: Modules) -> None:
    with torch.no_grad():
        for planned in plan.edits:
            if planned.edit.place == "instead":
                _put_copy(swaps, planned, modules[planned.key])
        for planned in plan.edits:  # a trained copy of a bias is what a method that changes the bias gets
            if planned.edit.place != "instead":
                _put_merged(swaps, planned, modules[planned.key])
                _put_merged_bias(swaps, planned, modules[planned.key])


def merged_weight(module: nn.Module, weight: Tensor, transposed: bool = False) -> Tensor:
    """W as stored -> merged W as stored, computed in float32 or better, in W's type."""
    wide = (weight.mT if transposed else weight).to(torch.promote_types(weight.dtype, torch.float32))
    merged = module.merged(wide)  # type: ignore[operator]
    return (merged.mT if transposed else merged).to(weight.dtype).contiguous()


def merged_bias(module: nn.Module, bias: Tensor) -> Tensor:
    """b as stored -> merged b, computed in float32 or better, in b's type; b itself where the method leaves it."""
    wide = bias.to(torch.promote_types(bias.dtype, torch.float32))
    merged = module.merged_bias(wide) if hasattr(module, "merged_bias") else wide  # type: ignore[operator]
    return bias if merged is wide else merged.to(bias.dtype)


def _put_merged(swaps: Swaps, planned: PlannedEdit, module: nn.Module) -> None:
    model = swaps.model
    owner, _, leaf = planned.site.weight.rpartition(".")
    holder = model.get_submodule(owner)
    if leaf not in holder._parameters or planned.site.stored:
        swaps.put_linear(planned.site.name, merged_weight(module, weight_of(model, planned.site).dense()))
        return
    before = holder.get_parameter(leaf)
    value = merged_weight(module, before.detach(), planned.site.transposed)
    swaps.put(holder, leaf, before, nn.Parameter(value, requires_grad=before.requires_grad))
    if any(parameter is before for parameter in model.parameters()):
        _untie(swaps)


def _put_merged_bias(swaps: Swaps, planned: PlannedEdit, module: nn.Module) -> None:
    if planned.site.bias and not planned.site.bare:
        holder = swaps.model.get_submodule(planned.site.name)
        before = holder.get_parameter("bias")
        own = before.detach()
        value = merged_bias(module, own)
        if value is not own:
            swaps.put(holder, "bias", before, nn.Parameter(value, requires_grad=before.requires_grad))


def _put_copy(swaps: Swaps, planned: PlannedEdit, module: nn.Module) -> None:
    before = parameter_of(swaps.model, planned.site)
    after = nn.Parameter(module().detach().to(before.dtype), requires_grad=before.requires_grad)
    if planned.site.alone:
        owner, _, leaf = planned.site.name.rpartition(".")
        swaps.put(swaps.model.get_submodule(owner), leaf, before, after)  # type: ignore[arg-type]
        _untie(swaps)
        return
    held = [(m, name) for m in swaps.model.modules() for name, p in m._parameters.items() if p is before]
    for holder, name in held:
        swaps.put(holder, name, before, after)  # type: ignore[arg-type]


def _untie(swaps: Swaps) -> None:
    """Another place still holds the weight as it was: it must not be tied again when the model is saved and loaded."""
    config = getattr(swaps.model, "config", None)
    if config is not None and hasattr(config, "tie_word_embeddings"):
        before = config.tie_word_embeddings
        swaps.undos.append(lambda: setattr(config, "tie_word_embeddings", before))
        config.tie_word_embeddings = False
