"""The edits of one adapter in their places: they can be taken off and put back, the same modules each time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import nn

from lorica.adapter.plan import Plan
from lorica.models import install

Undo = Callable[[], None]
Modules = Mapping[tuple[str, str], nn.Module]
"""The modules of the edits by (name of the site, place)."""


def undone(undos: Sequence[Undo]) -> None:
    """What was installed last goes first."""
    for undo in reversed(undos):
        undo()


class Installed:
    """In place from the beginning.  After an error the model is as it was."""

    def __init__(self, model: nn.Module, plan: Plan, modules: Modules) -> None:
        self.model, self.plan, self.modules = model, plan, modules
        self._undos: list[Undo] = []
        self.put()

    def put(self) -> None:
        try:
            for planned in self.plan.edits:
                module = self.modules[planned.key]
                self._undos.append(install(self.model, planned.edit.place, planned.site, module))
        except BaseException:
            self.take()
            raise

    def take(self) -> None:
        undone(self._undos)
        self._undos = []

    @contextmanager
    def off(self) -> Iterator[None]:
        """The bare base for a while; every module has its own mode back afterwards."""
        modes = [(module, module.training) for module in self.model.modules()]
        self.take()
        try:
            yield
        finally:
            self.put()
            for module, mode in modes:
                module.training = mode
