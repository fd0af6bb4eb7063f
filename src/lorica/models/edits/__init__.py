"""How each of the five edits is installed in each family.  Every installation returns its undo.

The base is never written: modules are wrapped, parameters are kept beside their copies, and undone in reverse order
every object stands where it stood.
"""

from collections.abc import Callable

from torch import nn

from lorica.models.edits import after, around, instead, keys_values_before, tokens_before
from lorica.models.edits.around import weight_of
from lorica.models.edits.holders import Undo
from lorica.models.edits.instead import parameter_of
from lorica.site import Place, Site

__all__ = ["Undo", "install", "parameter_of", "weight_of"]

_INSTALL: dict[Place, Callable[[nn.Module, Site, nn.Module], Undo]] = {
    "around": around.install,
    "after": after.install,
    "keys_values_before": keys_values_before.install,
    "tokens_before": tokens_before.install,
    "instead": instead.install,
}


def install(model: nn.Module, place: Place, site: Site, module: nn.Module) -> Undo:
    """Puts the module of one edit in its place.  TargetError where the base's family has no such place."""
    return _INSTALL[place](model, site, module)
