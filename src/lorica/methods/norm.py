"""Norm tuning: the gains and biases of normalisation layers are free copies.        Zhao et al. 2024, arXiv:2312.11420

    y = g' * (x - mean) / std + b'      g', b' start as the base's; RMSNorm has neither mean nor b'

PEFT calls it LN_TUNING.  One vector or two a norm: the smallest method that every transformer has parameters for.
"""

from collections.abc import Collection, Container, Mapping
from typing import Any, ClassVar

from lorica.errors import RecipeError, TargetError, did_you_mean
from lorica.methods import peft_config
from lorica.methods.contract import Copy, Edit, Instead
from lorica.methods.saved import Saving
from lorica.methods.targets import matches, shortest_names
from lorica.site import Site

PREFIX = "base_model.model."
PART = ".ln_tuning_layers."
UNDERSTOOD = frozenset({"target_modules", "modules_to_save"})


class Norm(Saving):
    """Norms alone.

    target_modules  "all", or names of norms: the whole path, or its end after a dot
    modules_to_save modules trained in full and saved whole, such as a new head
    """

    kind: ClassVar[str] = "norm"
    peft_type: ClassVar[str | None] = "LN_TUNING"
    batchable: ClassVar[bool] = False
    file_prefix: ClassVar[str] = PREFIX

    target_modules: str | tuple[str, ...] = "all"

    def edits(self, sites: tuple[Site, ...], statistics: Mapping[str, Any] | None = None) -> tuple[Edit, ...]:
        norms = [site for site in sites if site.kind == "parameter" and "norm" in site.roles]
        if not norms:
            raise TargetError("norm: no module of this base is known to be a norm; use lora, or full")
        named = () if self.target_modules == "all" else _listed(self.target_modules)
        known = {site.owner.rpartition(".")[2] for site in norms}
        problems = [
            f"target_modules: {name!r} matches no norm of this base{did_you_mean(name, known)}"
            for name in named
            if not any(matches(site.owner, name) for site in norms)
        ]
        if problems:
            raise TargetError.of(problems)
        chosen = [s for s in norms if not named or any(matches(s.owner, name) for name in named)]
        return (*(Instead(s, Copy) for s in chosen if not self.saves(s.owner)), *self.saved(sites))

    def advice(self) -> str:
        return "learning rate for norms: start at 1e-3"

    def file_name(self, edit: Edit, parameter: str, around: Container[str]) -> str:
        module, _, leaf = edit.site.name.rpartition(".")
        return PREFIX + edit.site.name if self.saves(module) else f"{PREFIX}{module}{PART}{leaf}"

    @classmethod
    def parameter_name(cls, key: str) -> str:
        return key.removeprefix(PREFIX).replace(PART, ".")

    @classmethod
    def site_name(cls, key: str) -> str:
        return cls.parameter_name(key)

    def site_of_file(self, name: str, shapes: Mapping[str, tuple[int, ...]]) -> Site | None:
        ((key, shape),) = shapes.items()
        return Site(name=name, kind="parameter", roles=("norm",) if PART in key else (), shape=shape)

    def peft_config(self, edits: tuple[Edit, ...], sites: tuple[Site, ...]) -> dict[str, Any]:
        modules = {e.site.owner: e.site for e in edits if not self.saves(e.site.owner)}
        named = [Site(name=name, kind="parameter") for name in modules]
        others = {site.owner if site.kind == "parameter" else site.name for site in sites} - modules.keys()
        return {
            "peft_type": self.peft_type,
            "target_modules": shortest_names(named, others),
            "modules_to_save": list(self.modules_to_save) or None,
        }

    @classmethod
    def from_peft(cls, config: Any, sites: tuple[Site, ...] = ()) -> "Norm":
        """The `peft.LNTuningConfig` (or a dict of its fields)."""
        given = peft_config.fields(config)
        targets, problems = peft_config.names(given.get("target_modules"), "target_modules")
        problems += peft_config.problems(given, UNDERSTOOD)
        if problems:
            raise RecipeError.of(problems)
        return cls(target_modules=targets or "all", modules_to_save=cls.asked_to_save(given, sites))

    @classmethod
    def from_file(cls, config: Mapping[str, Any], keys: Collection[str]) -> "Norm":
        """Which norms is read off the tensors."""
        if problems := peft_config.problems(config, UNDERSTOOD):
            raise RecipeError.of(problems)
        own = [key for key in keys if PART in key]
        norms = sorted({_path(cls.parameter_name(key)) for key in own})
        return cls(target_modules=tuple(norms), modules_to_save=cls.saved_in(keys, own))


def _listed(named: str | tuple[str, ...]) -> tuple[str, ...]:
    return (named,) if isinstance(named, str) else named


def _path(parameter: str) -> str:
    return parameter.rpartition(".")[0]
