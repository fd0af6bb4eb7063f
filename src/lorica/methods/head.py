"""The head alone is trained, on a base that stays as it is: linear probing.      Alain & Bengio 2016, arXiv:1610.01644

W' is a free copy of each parameter of the head.  It is what every other method has to beat on a task with a head.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from lorica.errors import TargetError
from lorica.methods.contract import Copy, Edit, Instead
from lorica.methods.saved import Saving
from lorica.methods.targets import HEAD
from lorica.site import Site


class HeadOnly(Saving):
    """modules_to_save: the modules that are the head, where the base has it under a name of its own."""

    kind: ClassVar[str] = "head"
    batchable: ClassVar[bool] = False

    def edits(self, sites: tuple[Site, ...], statistics: Mapping[str, Any] | None = None) -> tuple[Edit, ...]:
        if self.modules_to_save:
            return self.saved(sites)
        head = [site for site in sites if site.kind == "parameter" and HEAD in site.roles]
        if not head:
            raise TargetError("head: this base has no head of its own to train; name its modules in modules_to_save")
        return tuple(Instead(site, Copy) for site in head)

    def edits_of_file(self, sites: tuple[Site, ...]) -> tuple[Edit, ...]:
        """A file holds the head and nothing else, and no roles."""
        return tuple(Instead(site, Copy) for site in sites)

    def advice(self) -> str:
        return "learning rate for a head: start at 1e-3"
