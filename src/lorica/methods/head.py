"""The head alone is trained, on a base that stays as it is: linear probing.      Alain & Bengio 2016, arXiv:1610.01644

W' is a free copy of each parameter of the head.  It is what every other method has to beat on a task with a head.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from lorica.errors import TargetError, did_you_mean
from lorica.methods.contract import Copy, Edit, Instead, Method
from lorica.methods.targets import HEAD, within
from lorica.site import Site


class HeadOnly(Method):
    """modules_to_save: the modules that are the head, where the base has it under a name of its own."""

    kind: ClassVar[str] = "head"
    batchable: ClassVar[bool] = False

    modules_to_save: tuple[str, ...] = ()

    def edits(self, sites: tuple[Site, ...], statistics: Mapping[str, Any] | None = None) -> tuple[Edit, ...]:
        parameters = [site for site in sites if site.kind == "parameter"]
        chosen = [site for site in parameters if self._trains(site)]
        modules = {site.owner for site in parameters}
        problems = [
            f"modules_to_save: {name!r} matches no module{did_you_mean(name, {m.rpartition('.')[2] for m in modules})}"
            for name in self.modules_to_save
            if not any(within(module, name) for module in modules)
        ]
        if not chosen and not problems:
            problems = ["head: this base has no head of its own to train; name its modules in modules_to_save"]
        if problems:
            raise TargetError.of(problems)
        return tuple(Instead(site, Copy) for site in chosen)

    def edits_of_file(self, sites: tuple[Site, ...]) -> tuple[Edit, ...]:
        """A file holds the head and nothing else, and no roles."""
        return tuple(Instead(site, Copy) for site in sites)

    def _trains(self, site: Site) -> bool:
        if not self.modules_to_save:
            return HEAD in site.roles
        return any(within(site.owner, name) for name in self.modules_to_save)

    def advice(self) -> str:
        return "learning rate for a head: start at 1e-3"
