"""What methods share that put a module around the layers that `target_modules` chooses: the choice and the file.

    keys = {"A": ".lora_A.weight", "B": ".lora_B.weight"}     parameter of the module -> end of its key in PEFT's file
    around(site) -> Build                                     the module of one layer

PATH.END is the key of a parameter of the layer PATH; a copy of a whole module is kept under the base's own name.
Layers that their module reads itself have the paths of `peft_parts`.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

from pydantic import ValidationError

from lorica.errors import RecipeError, TargetError, by_field, did_you_mean
from lorica.methods import peft_config, peft_keys, peft_parts
from lorica.methods.contract import Around, Build, Copy, Edit, Instead, Keeps
from lorica.methods.peft_keys import PREFIX
from lorica.methods.saved import Saving
from lorica.methods.targets import PRESETS, Selection, matches, select, shortest_names, within
from lorica.site import Kind, Site

MOST_LOOKED_FOR = 1_000_000
"""Names times modules: a file that asks for more only wants the time."""

UNNAMED = "where PEFT chooses by its table for the model's family; name them, or give lorica.attach the config object"
OF_FINISHED = ("modules_to_save", "ensure_weight_tying")
"""A finished adapter computes the same whether tied layers were kept tied or not."""


class OnLayers(Saving):
    """`target_modules` (preset, list of names or glob) and `modules_to_save` (modules trained in full, such as a new
    head) mean the same in every method."""

    kinds: ClassVar[tuple[Kind, ...]] = ("linear",)
    """What a list of names may choose; a glob chooses all of it but embeddings, a preset linears."""
    keys: ClassVar[Mapping[str, str]] = {}
    translated: ClassVar[Mapping[str, str]] = {}
    """Fields of PEFT's config that mean the same here, and what they are called here."""
    understood: ClassVar[frozenset[str]] = frozenset()
    """Fields of PEFT's config that a method reads by itself."""

    target_modules: str | tuple[str, ...] = "all-linear"

    def around(self, site: Site) -> Build:
        """What builds the module of one layer."""
        raise NotImplementedError

    def kept_at(self, site: Site) -> Keeps:
        """What `keeps` is of a module around this layer."""
        return Keeps(inputs=True)

    def keeps(self, edit: Edit) -> Keeps:
        return self.kept_at(edit.site) if edit.place == "around" else super().keeps(edit)

    def problems(self, adapted: list[Site], sites: tuple[Site, ...]) -> list[str]:
        """What of the config does not fit the layers that it chose, and those there are."""
        return []

    def edits(self, sites: tuple[Site, ...], statistics: Mapping[str, Any] | None = None) -> tuple[Edit, ...]:
        adapted, saved = self.adapted(sites), self.saved_sites(sites)
        problems = [*self.problems(adapted, sites), *self._save_problems(sites)]
        if problems:
            raise TargetError.of(problems)
        return (*(Around(site, self.around(site)) for site in adapted), *(Instead(site, Copy) for site in saved))

    def edits_of_file(self, sites: tuple[Site, ...]) -> tuple[Edit, ...]:
        """A preset has chosen by roles, which a file does not tell: its tensors' names stand for it."""
        names = tuple(site.name for site in sites if site.kind in self.kinds)
        return self.model_copy(update={"target_modules": names}).edits(sites) if names else self.edits(sites)

    def adapted(self, sites: tuple[Site, ...]) -> list[Site]:
        return [site for site in self.selection(sites).sites if not self.saves(site.name)]

    def selection(self, sites: tuple[Site, ...]) -> Selection:
        kinds = self.kinds
        if isinstance(self.target_modules, str):
            kinds = tuple(kind for kind in kinds if kind != "embedding")
        return select(sites, self.target_modules, ("linear",) if self.target_modules in PRESETS else kinds)

    def left_out(self, sites: tuple[Site, ...]) -> tuple[str, ...]:
        """What the plan says of sites that a preset leaves as they are, although a list of names may choose them."""
        kinds = {"experts": "weights of experts", "conv": "convolutions"} if self.target_modules in PRESETS else {}
        held = {kind: [s for s in sites if s.kind == kind and kind in self.kinds] for kind in kinds}
        return tuple(
            f"{self.target_modules}: {len(found)} {kinds[kind]} stay as they are "
            f"({', '.join(sorted({site.leaf for site in found}))}); name them in target_modules to adapt them"
            for kind, found in held.items()
            if found
        )

    def _save_problems(self, sites: tuple[Site, ...]) -> list[str]:
        modules = {site.owner for site in sites if site.kind == "parameter"}
        missing = [
            _missing(name, sites, {module.rpartition(".")[2] for module in modules})
            for name in self.modules_to_save
            if not any(within(module, name) for module in modules)
        ]
        # PEFT matches these names without a dot before them, so it would look for both modules in the file.
        confused = [
            f"modules_to_save: for PEFT {name!r} is also the end of {module!r}; name both, or save under its full path"
            for name in self.modules_to_save
            for module in sorted(modules)
            if module.endswith(name) and not any(matches(module, saved) for saved in self.modules_to_save)
        ]
        return missing + confused

    def file_name(self, edit: Edit, parameter: str, around: Mapping[str, Sequence[str]]) -> str:
        if edit.place != "instead":
            return PREFIX + peft_parts.place(edit.site, around) + self.keys.get(parameter, f".{parameter}")
        module, _, leaf = edit.site.name.rpartition(".")
        within = peft_parts.moved(module, around)
        return f"{PREFIX}{within}.base_layer.{leaf}" if module in around else PREFIX + edit.site.name

    @classmethod
    def located(cls, keys: Collection[str], config: Mapping[str, Any], sites: tuple[Site, ...] = ()) -> dict[str, str]:
        ends = {key: end for key in keys if (end := cls.end_of(key))}
        paths = {key: key.removeprefix(PREFIX).removesuffix(end) for key, end in ends.items()}
        names = peft_parts.located(set(paths.values()), config, sites)
        return {key: PREFIX + names[paths[key]] + ends[key] if key in ends else key for key in keys}

    def peft_problems(self, edits: tuple[Edit, ...]) -> list[str]:
        bare = [edit.site.name for edit in edits if edit.place == "around" and edit.site.bare]
        return [f"{name}: no {self.kind} of PEFT adapts a weight that has no module" for name in bare]

    @classmethod
    def end_of(cls, key: str) -> str | None:
        """The end that makes a key one of a module around a layer."""
        return next((end for end in cls.keys.values() if key.endswith(end)), None)

    @classmethod
    def site_name(cls, key: str) -> str:
        return cls.parameter_name(key).removesuffix(cls.end_of(key) or "")

    @classmethod
    def parameter_name(cls, key: str) -> str:
        return key.removeprefix(PREFIX).replace(".base_layer.", ".")

    @classmethod
    def plain_keys(cls, keys: Collection[str]) -> dict[str, str]:
        return peft_keys.plain(keys, tuple(cls.keys.values()))

    @classmethod
    def surplus(cls, key: str) -> bool:
        return key.endswith(".base_layer.weight") or ".original_module." in key or ".modules_to_save." in key

    def where_entries(self, edits: Iterable[Edit], sites: tuple[Site, ...]) -> dict[str, Any]:
        """The part of PEFT's config that says where the adapter sits."""
        adapted = [edit.site for edit in edits if edit.place == "around"]
        experts = [site for site in adapted if site.kind == "experts"]
        modules = peft_parts.as_modules(adapted)
        parameters = [site.name for site in sites if site.kind == "parameter"]
        return {
            "peft_type": self.peft_type,
            "target_modules": peft_targets(modules, sites) if modules or not experts else [],
            **({"target_parameters": peft_parts.target_parameters(experts, parameters)} if experts else {}),
            "modules_to_save": list(self.modules_to_save) or None,
        }

    @classmethod
    def where_of_config(cls, given: Mapping[str, Any], sites: tuple[Site, ...]) -> tuple[dict[str, Any], list[str]]:
        """`target_modules` and `modules_to_save` of a PEFT config, and the complaints; with the base's `sites` the
        heads that PEFT trains for a classifier without being asked."""
        targets = given.get("target_modules")
        problems: list[str] = []
        if isinstance(targets, str) and targets != "all-linear":
            problems = [f"target_modules: PEFT reads {targets!r} as a regular expression; give a list or a glob"]
        if targets is None and not given.get("target_parameters"):
            problems = [f"target_modules: left out, {UNNAMED}"]
        listed = targets if isinstance(targets, str) else tuple(sorted(targets or ()))
        saved, strange = peft_config.names(given.get("modules_to_save"), "modules_to_save")
        heads = peft_config.heads(given, [s.owner for s in sites if s.kind == "parameter"])
        saved = (*saved, *(head for head in heads if head not in saved))
        problems += strange
        if not sites and peft_config.lacks_head(given):
            problems.append("task_type: PEFT trains the head as well; give the config to lorica.attach, which finds it")
        return {"target_modules": listed, "modules_to_save": saved}, problems

    @classmethod
    def where_of_file(cls, given: Mapping[str, Any], keys: Collection[str]) -> tuple[dict[str, Any], list[str]]:
        """Where an adapter sits is read off its tensors' names; names in `modules_to_save` that none of them needs are
        dropped (PEFT adds `score` and `classifier` to every classifier's list)."""
        keys = cls.located(keys, given).values()
        adapted = sorted({cls.site_name(key) for key in keys if cls.end_of(key)})
        copied = {key.removeprefix(PREFIX).rpartition(".")[0] for key in keys if not cls.end_of(key)}
        saved, problems = peft_config.names(given.get("modules_to_save"), "modules_to_save")
        if len(saved) * len(copied) > MOST_LOOKED_FOR:
            raise RecipeError(f"modules_to_save: {len(saved)} names for {len(copied)} modules, which no adapter has")
        return {"target_modules": tuple(adapted), "modules_to_save": _held(saved, copied)}, problems

    @classmethod
    def from_peft(cls, config: Any, sites: tuple[Site, ...] = ()) -> Self:
        """The method that a config of PEFT (or a dict of its fields) describes.

        sites: those of the base, in which the heads are found that PEFT trains for a classifier without being asked.
        """
        given = peft_config.fields(config)
        where, problems = cls.where_of_config(given, sites)
        known = {*cls.translated, *cls.understood, "target_modules", "modules_to_save", "layers_pattern"}
        return cls.of_fields(given, where, [*problems, *peft_config.problems(given, known, cls.peft_names)])

    @classmethod
    def from_file(cls, config: Mapping[str, Any], keys: Collection[str]) -> Self:
        where, problems = cls.where_of_file(config, keys)
        known = {*cls.translated, *cls.understood, *peft_config.WHERE_TO_ADAPT, *OF_FINISHED}
        return cls.of_fields(config, where, [*problems, *peft_config.problems(config, known)])

    @classmethod
    def of_fields(cls, given: Mapping[str, Any], ours: Mapping[str, Any], problems: list[str]) -> Self:
        """The method with `ours` and the `translated` fields of `given`.  RecipeError with every problem."""
        if problems:
            raise RecipeError.of(problems)
        values = {name: given[theirs] for theirs, name in cls.translated.items() if given.get(theirs) is not None}
        try:
            return cls.model_validate({**values, **ours})
        except ValidationError as error:
            raise RecipeError.of(by_field(error)) from None


def peft_targets(adapted: list[Site], sites: tuple[Site, ...]) -> list[str] | str:
    """Names that choose the same modules in PEFT; where no list can (a top-level module whose name is also the end of
    another's path), the regular expression of the full paths."""
    chosen = {site.name for site in adapted}
    paths = {s.owner if s.kind == "parameter" else s.name for s in sites}
    others = paths - chosen
    names = shortest_names(adapted, others)
    if any(matches(other, name) for other in others for name in names):
        return "|".join(re.escape(name) for name in sorted(chosen))
    return names


def _held(saved: Collection[str], modules: Collection[str]) -> tuple[str, ...]:
    """The modules that a file saves whole: their paths end as PEFT matches them, without a dot before the name."""
    parts = (module.split(".") for module in modules if saved)
    paths = (".".join(words[:end]) for words in parts for end in range(1, len(words) + 1))
    return tuple(sorted({path for path in paths if path.endswith(tuple(saved))}))


def _missing(name: str, sites: tuple[Site, ...], near: Collection[str]) -> str:
    """A tied parameter is listed under its first name alone."""
    if any(matches(site.name, name) for site in sites if site.kind in ("linear", "embedding")):
        untie = "leave it out, or give a base saved with tie_word_embeddings=False"
        return f"modules_to_save: {name!r} is tied with another module, which a saved copy would leave behind; {untie}"
    return f"modules_to_save: {name!r} matches no module{did_you_mean(name, near)}"
