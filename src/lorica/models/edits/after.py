"""After: y = adapter(base(x)) on the last module of a sublayer, before its output joins the residual stream."""

from torch import nn

from lorica.errors import TargetError
from lorica.models.edited import AfterModule
from lorica.models.edits.around import wrap
from lorica.models.edits.fused import is_read_uncalled
from lorica.models.edits.holders import Undo, holders, module_named
from lorica.site import Site


def install(model: nn.Module, site: Site, adapter: nn.Module) -> Undo:
    """Goes outside every edit that is there, so it acts on the edited output."""
    target = module_named(model, site.name)
    places = holders(model, target)
    if is_read_uncalled(places):
        raise TargetError(
            f"{site.name}: nn.MultiheadAttention reads this module without calling it; name the attention module itself"
        )
    return wrap(model, target, AfterModule(target, adapter), places)
