"""Around: y = adapter(x, base), wherever the linear, embedding or convolution is reached from.

Where a family reads the weight without calling a module for it (nn.MultiheadAttention, experts held as one parameter),
merged(W) takes the weight's place in each forward.
"""

from torch import nn

from lorica.errors import TargetError
from lorica.kernels import DenseWeight, FrozenWeight
from lorica.models.edited import AroundModule, Edited, original, slot
from lorica.models.edits.computed import Merged, compute, once_a_call
from lorica.models.edits.fused import is_read_uncalled, keep_called
from lorica.models.edits.holders import Places, Undo, holders, module_named, together
from lorica.site import Site


def weight_of(model: nn.Module, site: Site) -> FrozenWeight:
    """The weight of a site, edited or not."""
    if not site.bare:
        return FrozenWeight.of(_plain(module_named(model, site.name)))
    holder, leaf = _holder(model, site)
    weight = original(holder, leaf)
    assert weight is not None
    return DenseWeight(weight.detach(), site.transposed)


def install(model: nn.Module, site: Site, adapter: nn.Module) -> Undo:
    """TargetError where two edits would both compute the product of one weight."""
    base, leaf = _holder(model, site)
    places = holders(model, base)
    if any(isinstance(parent, AroundModule) for parent, _ in places) or slot(leaf) in base._modules:
        raise TargetError(
            f"{site.name} has an edit on its weight already; adapt it by one method, or detach that first"
        )
    if site.bare or is_read_uncalled(places):
        _refuse_changed_bias(site, adapter)
        return _merged_in(model, site, base, leaf, adapter)
    return wrap(model, base, AroundModule(base, adapter), places)


def _holder(model: nn.Module, site: Site) -> tuple[nn.Module, str]:
    """The module that holds the site's weight, and the weight's name in it."""
    owner, _, leaf = site.weight.rpartition(".")
    return _plain(module_named(model, owner)), leaf


def wrap(model: nn.Module, target: nn.Module, wrapper: Edited, places: Places) -> Undo:
    """`wrapper` stands at the places where `target` stood; the undo finds it wherever later edits moved it."""
    kept = keep_called(model, target)
    for parent, name in places:
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


def _merged_in(model: nn.Module, site: Site, base: nn.Module, leaf: str, adapter: nn.Module) -> Undo:
    if not hasattr(adapter, "merged") or _drops(adapter):
        raise TargetError(
            f"{site.name}: {_reader(model, site)} reads this weight without calling a module for it, "
            "so only a method with a merged weight and dropout 0 fits; leave it out of target_modules"
        )
    weight = base._parameters[leaf]
    assert weight is not None
    merged = Merged(adapter.train(base.training), weight, site.transposed)
    undo = compute(base, leaf, merged)
    if not site.part_of:
        return undo
    reader = _plain(module_named(model, site.part_of))
    return together([undo, keep_called(model, reader), once_a_call(reader, merged)])


def _reader(model: nn.Module, site: Site) -> str:
    if not site.part_of:
        return "nn.MultiheadAttention"
    kind = type(_plain(module_named(model, site.part_of)))
    return "nn.MultiheadAttention" if issubclass(kind, nn.MultiheadAttention) else kind.__name__


def _refuse_changed_bias(site: Site, adapter: nn.Module) -> None:
    if not site.bias or not hasattr(adapter, "merged_bias"):
        return
    probe = next(adapter.parameters()).new_zeros(site.d_out)
    if adapter.merged_bias(probe) is not probe:  # type: ignore[operator]
        raise TargetError(
            f"{site.name}: its bias is read without calling a module for it, and this method changes the bias; "
            "leave it out of target_modules"
        )
