"""Who holds a module or a parameter of a base: found by identity, so that everything tied is changed together."""

from collections.abc import Callable

from torch import nn

from lorica.errors import TargetError, did_you_mean

Undo = Callable[[], None]
"""Gives back what an installation changed, object for object."""
Places = list[tuple[nn.Module, str]]
"""(parent, attribute) each.  An edit looks for them once: a look walks through the whole model."""


def module_named(model: nn.Module, name: str) -> nn.Module:
    """The module at this path, as it stands now; TargetError when there is none."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        near = did_you_mean(name, [known for known, _ in model.named_modules()])
        raise TargetError(f"{name!r} is no module of this base{near}") from None


def every_module(model: nn.Module) -> list[nn.Module]:
    """Those of `model.modules()`, parents before their children, at a tenth of its time: an edit of each site asks."""
    found, known = [model], {id(model)}
    for module in found:  # which grows meanwhile
        if module._modules:
            children = {id(child): child for child in module._modules.values() if child is not None}
            found += [child for key, child in children.items() if key not in known]
            known.update(children)
    return found


def holders(model: nn.Module, module: nn.Module) -> Places:
    """Every (parent, attribute) under which `module` is reached."""
    places = [
        (parent, name) for parent in every_module(model) for name, child in parent._modules.items() if child is module
    ]
    if not places:
        raise TargetError(f"{type(module).__name__} is the whole model; wrap it in a module that holds it")
    return places


def parameter_holders(model: nn.Module, parameter: nn.Parameter) -> Places:
    """Every (module, attribute) under which `parameter` is reached; several when it is tied."""
    return [
        (module, name)
        for module in every_module(model)
        for name, held in module._parameters.items()
        if held is parameter
    ]


def together(undos: list[Undo]) -> Undo:
    """One undo for several, the last installed first."""

    def undo() -> None:
        for each in reversed(undos):
            each()

    return undo
