"""attach: the edits of a plan are built, started and installed on a base that is frozen but never written."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from weakref import WeakSet

import torch
from torch import Tensor, nn

from lorica.adapter.attached import Attached
from lorica.adapter.installed import Installed, Modules, Undo, undone
from lorica.adapter.peft_format import base_name
from lorica.adapter.plan import READING, Methods, Plan, PlannedEdit
from lorica.adapter.plan import plan as plan_of
from lorica.errors import AdapterError, TargetError
from lorica.kernels import FrozenWeight, pooled
from lorica.methods.contract import Start
from lorica.models import enter, original_weight, parameter_of, weight_of
from lorica.models.ambient import Clock
from lorica.models.quantised import unpacked
from lorica.models.walking import tied_names

_OCCUPIED: WeakSet[nn.Module] = WeakSet()
"""Models that carry an adapter or a bank: a second one would silently see the edits of the first as its base."""


def attach(
    model: nn.Module, method: Methods | Plan, *, seed: int = 0, statistics: Mapping[str, Tensor] | None = None
) -> Attached:
    """Adapts `model` in place and returns the handle on what is trained.

    The base is frozen (`detach` gives back each parameter's `requires_grad`).  Parameters start in float32 (float64 on
    a float64 base) from `seed` and the name of their site alone.  `method` may be several, a plan, or a config of PEFT.
    statistics: of `lorica.statistics`, for the starts that are read off training data (EVA, LoRA-GA).
    TargetError where the method does not fit; AdapterError where the model carries an adapter already.  After any error
    the model is as it was.
    """
    plan = method if isinstance(method, Plan) else plan_of(model, method, statistics=statistics)
    require_free(model)
    return installed(model, plan, built(model, plan, seed), seed)


def built(model: nn.Module, plan: Plan, seed: int) -> Modules:
    """The modules of a plan in their starting state, not yet installed.

    In the pool, since what is made on the way (a weight made dense for its row lengths, wider copies) leaves holes.
    """
    given: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in plan.statistics.items():
        site, _, parameter = key.rpartition(".")
        given[site][parameter] = tensor
    shared: dict[int, dict[str, nn.Module]] = {id(method): {} for method in plan.methods}
    with pooled(next(model.parameters()).device):
        return {p.key: _built(model, p, seed, given.get(p.site.name, {}), shared[id(p.method)]) for p in plan.edits}


def installed(model: nn.Module, plan: Plan, modules: Modules, seed: int = 0) -> Attached:
    """Puts modules in their places.  After an error the model is as it was."""
    _refuse_tied(model, plan)
    undos: list[Undo] = [occupy(model)]
    try:
        undos += [frozen(model), unpacked(model)]
        edits = Installed(model, plan, modules)
        undos.append(edits.take)
        clock = Clock(seed)
        undos.append(enter(model, clock))
        return Attached(edits, clock, undos)
    except BaseException:
        undone(undos)
        raise


def occupy(model: nn.Module) -> Undo:
    """Marks a model as carrying edits; AdapterError when it does already."""
    require_free(model)
    _OCCUPIED.add(model)
    return lambda: _OCCUPIED.discard(model)


def require_free(model: nn.Module) -> None:
    if model in _OCCUPIED:
        raise AdapterError(
            "this model carries an adapter already: detach() or merge() that first, or hold several in a lorica.Bank"
        )


def _built(
    model: nn.Module, planned: PlannedEdit, seed: int, given: Mapping[str, Tensor], shared: dict[str, nn.Module]
) -> nn.Module:
    """The module of one edit, on the device of what it edits.  Its generator knows its site, not its turn."""
    name = f"{seed}:{planned.edit.place}:{planned.site.name}"
    digest = hashlib.sha256(name.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
    edit = planned.edit
    weight = weight_of(model, edit.site) if edit.place in READING else None
    parameter = parameter_of(model, edit.site) if edit.place == "instead" else None
    near = weight if weight is not None else parameter
    near = near if near is not None else next(model.parameters())
    before = partial(original_weight, model, planned.site, base_name(model))
    return edit.build(Start(generator, near.device, _training_dtype(near), weight, parameter, given, before, shared))


def _training_dtype(base: Tensor | FrozenWeight) -> torch.dtype:
    return torch.float64 if base.dtype == torch.float64 else torch.float32


def _refuse_tied(model: nn.Module, plan: Plan) -> None:
    """PEFT trains a copy for one module and leaves the other as it was; a copy here stands in both places."""
    tied = tied_names(model)
    problems = [
        f"{p.site.name} is tied with {', '.join(tied[p.site.name])}, which a saved copy would leave behind; "
        "leave it out of modules_to_save"
        for p in plan.edits
        if p.whole and p.method.peft_type is not None and p.site.name in tied and not p.site.alone
    ]
    if problems:
        raise TargetError.of(problems)


def frozen(model: nn.Module) -> Undo:
    """No parameter of the base is trained; the undo gives back what was."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)

    def unfreeze() -> None:
        for parameter in trained:
            parameter.requires_grad_(True)

    return unfreeze
