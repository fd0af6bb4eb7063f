"""Around: y = adapter(x, base), wherever the linear or embedding is reached from.

Where a family reads the weight without calling the module, merged(W) takes the weight's place in each forward.
"""

from torch import nn

from lorica.errors import TargetError
from lorica.kernels import FrozenWeight
from lorica.models.edited import AroundModule, Edited, slot
from lorica.models.edits.computed import Merged, compute
from lorica.models.edits.fused import is_read_uncalled, keep_called
from lorica.models.edits.holders import Undo, holders, module_named, together
from lorica.site import Site


def weight_of(model: nn.Module, site: Site) -> FrozenWeight:
    """The weight of a linear or embedding site, edited or not."""
    return FrozenWeight.of(_plain(module_named(model, site.name)))


def install(model: nn.Module, site: Site, adapter: nn.Module) -> Undo:
    """TargetError where two edits would both compute the product of one weight."""
    base = _plain(module_named(model, site.name))
    if any(isinstance(parent, AroundModule) for parent, _ in holders(model, base)) or slot("weight") in base._modules:
        raise TargetError(
            f"{site.name} has an edit on its weight already; adapt it by one method, or detach that first"
        )
    if is_read_uncalled(model, base):
        _refuse_changed_bias(site, base, adapter)
        return _merged_in(site, base, adapter)
    return wrap(model, base, AroundModule(base, adapter))


def wrap(model: nn.Module, target: nn.Module, wrapper: Edited) -> Undo:
    """`wrapper` stands wherever `target` stood; the undo finds it again wherever later edits have moved it."""
    kept = keep_called(model, target)
    for parent, name in holders(model, target):
        if parent is not wrapper:
            setattr(parent, name, wrapper)

    def unwrap() -> None:
        for parent, name in holders(model, wrapper):
            setattr(parent, name, wrapper.base)

    return together([kept, unwrap])


def _plain(module: nn.Module) -> nn.Module:
    while isinstance(module, Edited):
        module = module.base
    return module


def _merged_in(site: Site, base: nn.Module, adapter: nn.Module) -> Undo:
    low_rank = adapter.low_rank() if hasattr(adapter, "low_rank") else None  # type: ignore[operator]
    if not hasattr(adapter, "merged") or (low_rank is not None and low_rank.dropout):
        raise TargetError(
            f"{site.name}: nn.MultiheadAttention reads this weight without calling its module, "
            "so only a method with a merged weight and dropout 0 fits; leave it out of target_modules"
        )
    weight = base._parameters["weight"]
    assert weight is not None
    return compute(base, "weight", Merged(adapter.train(base.training), weight))


def _refuse_changed_bias(site: Site, base: nn.Module, adapter: nn.Module) -> None:
    bias = base._parameters.get("bias")
    if bias is not None and hasattr(adapter, "merged_bias") and adapter.merged_bias(bias) is not bias:  # type: ignore[operator]
        raise TargetError(
            f"{site.name}: its bias is read without calling its module, and this method scales the bias; "
            "leave it out of target_modules"
        )
