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


def _drops(adapter: nn.Module) -> bool:
    low_rank = adapter.low_rank() if hasattr(adapter, "low_rank") else None  # type: ignore[operator]
    return bool(getattr(adapter, "dropout", 0) if low_rank is None else low_rank.dropout)


def _merged_in(site: Site, base: nn.Module, adapter: nn.Module) -> Undo:
    if not hasattr(adapter, "merged") or _drops(adapter):
        raise TargetError(
            f"{site.name}: nn.MultiheadAttention reads this weight without calling its module, "
            "so only a method with a merged weight and dropout 0 fits; leave it out of target_modules"
        )
    weight = base._parameters["weight"]
    assert weight is not None
    return compute(base, "weight", Merged(adapter.train(base.training), weight))
