"""Edited: a module of the base with an adapter module beside it.  The base module is kept whole and never written.

Around   y = adapter(x, base)          adapter decides how the base's own product enters
After    y = adapter(base(x))
"""

from typing import Any

from torch import Tensor, nn

from lorica.models import ambient
from lorica.models.layout import Layout

Flow = Layout | ambient.Pass


class Edited(nn.Module):
    """Wraps `base`; whoever asks for its type, its `.weight` or any other attribute is answered by the base."""

    def __init__(self, base: nn.Module, adapter: nn.Module) -> None:
        nn.Module.__init__(self)
        self.base = base
        self.adapter = adapter.train(base.training)
        self.training = base.training

    @property
    def __class__(self) -> type:  # type: ignore[override]
        """Families ask `isinstance(layer, nn.Linear)`; `type(layer)` is still the wrapper."""
        base = self.__dict__.get("_modules", {}).get("base")
        return type(self) if base is None else base.__class__

    def __getattr__(self, name: str) -> Any:
        try:
            return nn.Module.__getattr__(self, name)
        except AttributeError:
            return getattr(nn.Module.__getattr__(self, "base"), name)

    def _get_name(self) -> str:
        return type(self).__name__

    def through_base(self, x: Tensor, flow: Flow) -> Tensor:
        return apply(self.base, x, flow)


class AroundModule(Edited):
    def forward(self, x: Tensor, flow: Flow | None = None) -> Tensor:
        flow = ambient.current.get() if flow is None else flow
        return self.adapter(x, self.base, flow)


class AfterModule(Edited):
    def forward(self, x: Tensor, flow: Flow | None = None) -> Tensor:
        flow = ambient.current.get() if flow is None else flow
        return self.adapter(self.through_base(x, flow), flow)


class Beside(nn.Module):
    """What an edit registers in a module of the base to be trained, moved and saved with it; no part of the base.

    `base` is the parameter whose place is taken, where one is.
    """

    def __init__(self, adapter: nn.Module, base: nn.Parameter | None = None) -> None:
        super().__init__()
        self.adapter = adapter
        self.base = base


def original(module: nn.Module, name: str) -> nn.Parameter | None:
    """The base's own parameter of this name, where an edit has taken its place too."""
    beside = module._modules.get(slot(name))
    return beside.base if isinstance(beside, Beside) else module._parameters[name]


def slot(name: str) -> str:
    """The attribute under which the edit of parameter `name` is registered."""
    return f"{name}_edit"


def apply(module: nn.Module, x: Tensor, flow: Flow) -> Tensor:
    """module(x), telling an edited module where its tokens stand."""
    return module(x, flow) if isinstance(module, Edited) else module(x)
