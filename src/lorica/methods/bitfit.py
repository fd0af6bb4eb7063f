"""BitFit: b' is a free copy of b, for every bias of the base.        Ben Zaken et al. 2022, arXiv:2106.10199, section 3

Biases of linears and of norms alike; `target_modules` names fewer (the paper's subset: those of the queries and of the
MLP's first linear).  A base without biases, as the Llama family is, has nothing to train: that is an error.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from lorica.errors import TargetError, did_you_mean
from lorica.methods.contract import Copy, Edit, Instead
from lorica.methods.saved import Saving
from lorica.methods.targets import matches
from lorica.site import Site

BIASES = ("bias", "in_proj_bias")


class BitFit(Saving):
    """Biases alone.

    target_modules  "all", or names of modules whose biases are trained: the whole path, or its end after a dot
    modules_to_save modules trained in full and saved whole, such as a new head
    """

    kind: ClassVar[str] = "bitfit"
    batchable: ClassVar[bool] = False

    target_modules: str | tuple[str, ...] = "all"

    def edits(self, sites: tuple[Site, ...], statistics: Mapping[str, Any] | None = None) -> tuple[Edit, ...]:
        biases = [site for site in sites if site.kind == "parameter" and site.leaf in BIASES]
        if not biases:
            raise TargetError("bitfit: this base has no biases, so nothing would be trained; use norm, or lora")
        chosen = [site for site in biases if self._names(site) and not self.saves(site.owner)]
        self._require_matches(biases)
        return (*(Instead(site, Copy) for site in chosen), *self.saved(sites))

    def _entries(self) -> tuple[str, ...]:
        named = (self.target_modules,) if isinstance(self.target_modules, str) else self.target_modules
        return () if named == ("all",) else named

    def _names(self, site: Site) -> bool:
        return self.target_modules == "all" or any(matches(site.owner, name) for name in self._entries())

    def _require_matches(self, biases: list[Site]) -> None:
        known = {site.owner.rpartition(".")[2] for site in biases}
        problems = [
            f"target_modules: {name!r} matches no module with a bias{did_you_mean(name, known)}"
            for name in self._entries()
            if not any(matches(site.owner, name) for site in biases)
        ]
        if not self.target_modules:
            problems.append("target_modules: names nothing; write all, or names of modules with biases")
        if problems:
            raise TargetError.of(problems)

    def advice(self) -> str:
        return "learning rate for BitFit: start at 1e-3, and try down to 1e-4"
