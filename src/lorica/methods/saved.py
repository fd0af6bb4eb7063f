"""Modules that are trained in full and saved whole beside a method's own edits: `modules_to_save`, as PEFT names it.

W' = a free copy of W for every parameter of the modules named, such as a new head
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

from lorica.errors import RecipeError, TargetError, did_you_mean
from lorica.methods import peft_config
from lorica.methods.contract import Copy, Edit, Instead, Method
from lorica.methods.targets import matches, within
from lorica.site import Site


class Saving(Method):
    """A method that may train modules whole as well.

    modules_to_save     names as PEFT matches them: the whole path, or its end after a dot
    """

    file_prefix: ClassVar[str] = ""
    """What PEFT puts before the path of a module that it saves whole."""
    modules_to_save: tuple[str, ...] = ()

    def saves(self, module: str) -> bool:
        """Whether `modules_to_save` trains this module whole."""
        return any(within(module, name) for name in self.modules_to_save)

    def saved_sites(self, sites: tuple[Site, ...]) -> list[Site]:
        """The parameters of the modules that are trained whole."""
        return [site for site in sites if site.kind == "parameter" and self.saves(site.owner)]

    def saved(self, sites: tuple[Site, ...]) -> tuple[Edit, ...]:
        """The copies of the modules named; TargetError naming every entry that matches none."""
        parameters = [site for site in sites if site.kind == "parameter"]
        modules = {site.owner for site in parameters}
        missing = [
            f"modules_to_save: {name!r} matches no module with parameters of its own"
            f"{did_you_mean(name, {module.rpartition('.')[2] for module in modules})}"
            for name in self.modules_to_save
            if not any(within(module, name) for module in modules)
        ]
        if missing:
            raise TargetError.of(missing)
        return tuple(Instead(site, Copy) for site in self.saved_sites(sites))

    def file_name(self, edit: Edit, parameter: str, around: Mapping[str, Sequence[str]]) -> str:
        if edit.place == "instead":
            return self.file_prefix + edit.site.name
        return f"{edit.site.name}.{parameter}"

    @classmethod
    def parameter_name(cls, key: str) -> str:
        return key.removeprefix(cls.file_prefix)

    @classmethod
    def saved_in(cls, keys: Collection[str], own: Collection[str]) -> tuple[str, ...]:
        """The modules that a file saves whole: those of its keys that are not the method's own."""
        return tuple(sorted({_module(cls.parameter_name(key)) for key in keys if key not in own}))

    @classmethod
    def asked_to_save(cls, given: Mapping[str, Any], sites: tuple[Site, ...]) -> tuple[str, ...]:
        """`modules_to_save` of PEFT's config, and the heads that it trains for the task without being asked."""
        named, problems = peft_config.names(given.get("modules_to_save"), "modules_to_save")
        if problems:
            raise RecipeError.of(problems)
        modules = {site.owner for site in sites if site.kind == "parameter"}
        known = [name for name in named if not modules or any(matches(module, name) for module in modules)]
        return tuple(dict.fromkeys((*known, *peft_config.heads(given, sorted(modules)))))


def _module(parameter: str) -> str:
    return parameter.rpartition(".")[0]
