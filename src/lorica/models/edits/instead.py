"""Instead: a trainable copy takes a parameter's place in every module that holds it; the original object is kept.

Of a tied parameter, a site may mean one place alone: PEFT gives each of two tied modules a copy of its own.

A copy of the base's own type is put in place as it is.  A float32 copy for a half-precision base is cast at each read.
"""

from torch import Tensor, nn

from lorica.errors import TargetError, did_you_mean
from lorica.models.edited import AroundModule, slot
from lorica.models.edits.computed import Cast, compute
from lorica.models.edits.holders import Undo, holders, parameter_holders, together
from lorica.models.fetched import FetchedLinear
from lorica.site import Site


def parameter_of(model: nn.Module, site: Site) -> Tensor:
    """The parameter at this path, or what an edit computes in its place."""
    owner, _, leaf = site.name.rpartition(".")
    if leaf == "weight" and isinstance(model.get_submodule(owner), FetchedLinear):
        raise TargetError(
            f"{site.name} is fetched as it is used, so that no copy of it can be trained; load the base without "
            "host_layers, or adapt it by lora"
        )
    try:
        value = getattr(model.get_submodule(owner), leaf)
    except AttributeError:
        value = None
    if not isinstance(value, Tensor):
        near = did_you_mean(site.name, [name for name, _ in model.named_parameters()])
        raise TargetError(f"{site.name!r} is no parameter of this base{near}")
    return value


def install(model: nn.Module, site: Site, adapter: nn.Module) -> Undo:
    """TargetError where the parameter is edited already, or the copy has another shape."""
    original = parameter_of(model, site)
    places = _places(model, site, original) if isinstance(original, nn.Parameter) else []
    if not places or any(_is_edited(model, *place) for place in places):
        raise TargetError(f"{site.name} has an edit on it already; adapt it by one method, or detach that first")
    assert isinstance(original, nn.Parameter)
    value = adapter()
    if value.shape != original.shape:
        raise TargetError(f"{site.name}: the copy is {tuple(value.shape)}, the parameter {tuple(original.shape)}")
    take = _put if isinstance(value, nn.Parameter) and value.dtype == original.dtype else compute
    return together([take(holder, name, Cast(adapter, original)) for holder, name in places])


def _places(model: nn.Module, site: Site, original: nn.Parameter) -> list[tuple[nn.Module, str]]:
    owner, _, leaf = site.name.rpartition(".")
    return [(model.get_submodule(owner), leaf)] if site.alone else parameter_holders(model, original)


def _is_edited(model: nn.Module, holder: nn.Module, name: str) -> bool:
    if slot(name) in holder._modules or name == "base":
        return True
    return name == "weight" and any(isinstance(parent, AroundModule) for parent, _ in holders(model, holder))


def _put(holder: nn.Module, name: str, cast: Cast) -> Undo:
    holder.add_module(slot(name), cast)
    setattr(holder, name, cast.adapter())

    def undo() -> None:
        setattr(holder, name, cast.base)
        del holder._modules[slot(name)]

    return undo
