"""Plan: which edits a method makes on a base, and what they cost, before anything is attached.

Only shapes are needed: modules are counted by building them on the meta device, so a 70B base plans on a laptop.

    sites, methods -> [edit, edit, ...] -> table of coverage, trained and total parameters
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lorica.errors import TargetError
from lorica.kernels import DenseWeight
from lorica.methods import Method, method_of_peft, peft_config
from lorica.methods.contract import Edit, Role, Start, neighbours, stored
from lorica.models import sites as sites_of
from lorica.site import Site

META = torch.device("meta")
READING = ("around", "tokens_before")
"""Places whose modules are given the weight that they edit, or begin from."""
Methods = Method | Sequence[Method] | Any
"""One method or several; a config object of PEFT stands for the method that it describes."""


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor of the adapter file: its name in the module of its edit, its shape, what it is to an optimiser, and
    whether it is trained."""

    name: str
    shape: tuple[int, ...]
    role: Role
    trained: bool = True

    def of(self, module: nn.Module) -> Tensor:
        """The tensor itself, in the module of its edit."""
        return module.get_parameter(self.name) if self.trained else module.get_buffer(self.name)


@dataclass(frozen=True, eq=False, kw_only=True)
class PlannedEdit:
    """One edit, the method it comes from, and the tensors the adapter file keeps of its module, each by its key.

    unsaved: how many numbers its module holds beside them that no module of an earlier edit does.
    """

    edit: Edit
    method: Method
    tensors: Mapping[str, "PlannedTensor"]
    unsaved: int = 0

    @property
    def parameters(self) -> int:
        """How many are trained."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values() if tensor.trained)

    @property
    def site(self) -> Site:
        return self.edit.site

    @property
    def key(self) -> tuple[str, str]:
        return self.edit.site.name, self.edit.place

    @property
    def replaces(self) -> int:
        """Parameters of the base that are out of use while this edit is in place: as many as are trained for them."""
        return self.parameters if self.edit.place == "instead" and not self.site.alone else 0

    @property
    def whole(self) -> bool:
        """A copy of the whole parameter stands in its place."""
        return self.edit.place == "instead" and self.parameters == math.prod(self.site.shape)

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.site.name,
            "kind": self.site.kind,
            "place": self.edit.place,
            "method": self.method.kind,
            "shape": list(self.site.shape),
            "note": self.method.note(self.edit),
            "parameters": self.parameters,
            **({"tower": self.site.tower} if self.site.tower else {}),
        }


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the coverage table: the sites that share a last name, a shape and a rank."""

    name: str
    place: str
    count: int
    shape: tuple[int, ...]
    note: str
    each: int

    @property
    def parameters(self) -> int:
        return self.count * self.each


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan:
    """The edits of one or several methods on a base with these sites; `print(plan)` shows the coverage."""

    methods: tuple[Method, ...]
    edits: tuple[PlannedEdit, ...]
    base: tuple[Site, ...]
    source: str | None = None
    statistics: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    """What modules start from, by `SITE.PARAMETER`, where that was read off training data or a checkpoint."""

    @cached_property
    def base_parameters(self) -> int:
        return sum(math.prod(site.shape) for site in self.base if site.kind == "parameter")

    @cached_property
    def trainable_parameters(self) -> int:
        return sum(planned.parameters for planned in self.edits)

    @cached_property
    def frozen_parameters(self) -> int:
        """What modules hold beside what is trained: frozen tensors of the file, and those that are not in it, such as
        PiSSA's starting factors."""
        kept = sum(math.prod(tensor.shape) for tensor in self.tensors.values() if not tensor.trained)
        return kept + sum(planned.unsaved for planned in self.edits)

    @cached_property
    def total_parameters(self) -> int:
        """Parameters of the adapted model in use; an original that a copy stands in for is not counted twice."""
        added = sum(planned.parameters - planned.replaces for planned in self.edits)
        return self.base_parameters + added + self.frozen_parameters

    @property
    def trainable_percent(self) -> float:
        return 100 * self.trainable_parameters / max(1, self.total_parameters)

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(planned.site for planned in self.edits)

    @cached_property
    def matched(self) -> dict[str, int]:
        """How many sites each entry of `target_modules` chose."""
        chosen = (method.selection(self.base) for method in self.methods)
        return {entry: count for selection in chosen if selection for entry, count in selection.counts.items()}

    @property
    def unmatched(self) -> tuple[str, ...]:
        """Entries that chose nothing; `plan` refuses them, so a Plan has none."""
        return tuple(entry for entry, count in self.matched.items() if not count)

    @cached_property
    def beyond(self) -> tuple[str, ...]:
        """Roles that are adapted although no preset names them, because a fused layer computes them too."""
        chosen = (method.selection(self.base) for method in self.methods)
        return tuple(sorted({role for selection in chosen if selection for role in selection.beyond}))

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        counts: dict[tuple[Any, ...], int] = {}
        for planned in self.edits:
            key = (_row_name(planned), planned.edit.place, planned.site.shape, planned.method.note(planned.edit))
            counts[*key, planned.parameters] = counts.get((*key, planned.parameters), 0) + 1
        return tuple(
            Row(name=name, place=place, shape=shape, note=note, each=each, count=count)
            for (name, place, shape, note, each), count in counts.items()
        )

    @cached_property
    def tensors(self) -> dict[str, PlannedTensor]:
        """Everything that the adapter file keeps, by its key."""
        return {key: tensor for planned in self.edits for key, tensor in planned.tensors.items()}

    @cached_property
    def learned(self) -> dict[str, PlannedTensor]:
        """What of it is trained."""
        return {key: tensor for key, tensor in self.tensors.items() if tensor.trained}

    def of(self, method: Method) -> tuple[Edit, ...]:
        return tuple(planned.edit for planned in self.edits if planned.method is method)

    def __str__(self) -> str:
        return "\n".join([self._headline(), *_table(self.rows), *self._remarks()])

    def _headline(self) -> str:
        names = " + ".join(method.kind for method in self.methods)
        stored = sorted({site.stored for site in self.base if site.stored})
        form = f" in {' and '.join(stored)}" if stored else ""
        on = f" on {self.source}{form}" if self.source else ""
        return (
            f"{names}{on}: {len(self.edits)} sites, {self.trainable_parameters:,} of "
            f"{self.total_parameters:,} parameters trained ({self.trainable_percent:.4f} %)"
        )

    def _remarks(self) -> Iterator[str]:
        if self.matched:
            yield "target_modules: " + ", ".join(f"{entry} -> {count}" for entry, count in self.matched.items())
        if self.beyond:
            yield f"fused layers: this adapts more than the preset names ({', '.join(self.beyond)})"
        for method in self.methods:
            yield from method.remarks(self.base)

    def to_dict(self) -> dict[str, Any]:
        return {
            "methods": [{"name": method.kind, **method.model_dump(mode="json")} for method in self.methods],
            "trainable_parameters": self.trainable_parameters,
            "total_parameters": self.total_parameters,
            "trainable_percent": self.trainable_percent,
            "sites": [planned.to_dict() for planned in self.edits],
            "matched": self.matched,
            "unmatched": list(self.unmatched),
            "beyond": list(self.beyond),
        }


def plan(
    base: nn.Module | Sequence[Site],
    method: Methods,
    *,
    source: str | None = None,
    trained: bool = False,
    statistics: Mapping[str, Tensor] | None = None,
) -> Plan:
    """What `method` (or the union of several) would do to a base, given as a model (on any device, meta too) or its
    sites; `trained` when an adapter exists already.  TargetError where the edits do not fit the base or each other.

    statistics: what was read off training data for starts that need it; without them a plan counts the ranks asked for.
    """
    sites = sites_of(base) if isinstance(base, nn.Module) else tuple(base)
    family = getattr(getattr(base, "config", None), "model_type", None)
    methods = tuple(
        _method(each, sites, family) for each in (method if isinstance(method, list | tuple) else (method,))
    )
    if not methods:
        raise TargetError("method: the list is empty; name at least one")
    statistics = statistics or {}
    methods = tuple(each.given(sites, statistics) for each in methods)
    pairs = [(edit, each) for each in methods for edit in each.edits(sites, statistics)]
    _refuse_overlaps(pairs)
    _refuse_quantised(pairs)
    wasteful = [problem for each in methods for problem in each.wasteful(edit for edit, of in pairs if of is each)]
    if wasteful and not trained:
        raise TargetError.of(wasteful)
    edits = tuple(_planned_edits(methods, pairs))
    source = source or (getattr(base, "source", None) if isinstance(base, nn.Module) else None)
    return Plan(methods=methods, edits=edits, base=sites, source=source, statistics=statistics)


def _planned_edits(methods: Sequence[Method], pairs: Sequence[tuple[Edit, Method]]) -> Iterator[PlannedEdit]:
    around = neighbours(edit.site.name for edit, _ in pairs if edit.place == "around")
    marks = {id(each): mark for each, mark in zip(methods, key_marks(methods), strict=True)}
    shared: dict[int, dict[str, nn.Module]] = {id(each): {} for each in methods}
    held: dict[int, Tensor] = {}
    for edit, each in pairs:
        module = on_meta(edit, shared[id(each)])
        keys = {name: marks[id(each)] + each.file_name(edit, name, around) for name in stored(module)}
        tensors = {keys[name]: _planned(edit, each, name, kept) for name, kept in stored(module).items()}
        new = {id(t): t for name, t in module.named_buffers() if name not in keys and t.is_floating_point()}
        unsaved = sum(tensor.numel() for at, tensor in new.items() if at not in held)
        held.update(new)
        yield PlannedEdit(edit=edit, method=each, tensors=tensors, unsaved=unsaved)


def key_marks(methods: Sequence[Method]) -> tuple[str, ...]:
    """What stands before the keys of each of several methods in one file: its name, counted where it comes again."""
    if len(methods) == 1:
        return ("",)
    before = ([other.kind for other in methods[:place]].count(method.kind) for place, method in enumerate(methods))
    return tuple(f"{m.kind}{f'-{n + 1}' if n else ''}." for m, n in zip(methods, before, strict=True))


def _method(given: Any, sites: tuple[Site, ...], family: str | None) -> Method:
    """A method, or the one that a config object of PEFT describes, with its words for this base written out."""
    if isinstance(given, Method):
        return given.resolved(sites)
    peft_type = getattr(given, "peft_type", None)
    if peft_type is None:
        raise TargetError(f"method: {type(given).__name__} is none; give lorica.LoRA(r=8), or a config of PEFT")
    names = [site.name for site in sites if site.kind != "parameter"]
    return method_of_peft(given).from_peft(peft_config.of_family(given, family, names), sites).resolved(sites)


def on_meta(edit: Edit, shared: dict[str, nn.Module]) -> nn.Module:
    """The edit's module in shape alone."""
    shape = edit.site.shape
    weight = DenseWeight(torch.empty(shape, device=META)) if edit.place in READING else None
    parameter = torch.empty(shape, device=META) if edit.place == "instead" else None
    return edit.build(Start(torch.Generator(), META, torch.float32, weight, parameter, shared=shared))


def _planned(edit: Edit, method: Method, name: str, kept: Tensor) -> PlannedTensor:
    shape = tuple(kept.shape)
    return PlannedTensor(name, shape, method.role(edit, name, shape), isinstance(kept, nn.Parameter))


def _refuse_overlaps(pairs: Sequence[tuple[Edit, Method]]) -> None:
    """Two edits of one place, and a copy of a weight that a low-rank product is added to, have no meaning together."""
    askers: dict[tuple[str, str], list[str]] = {}
    for edit, method in pairs:
        askers.setdefault((edit.site.name, edit.place), []).append(method.kind)
    around = {edit.site.weight for edit, _ in pairs if edit.place == "around"}
    copied = [e.site.name for e, _ in pairs if e.place == "instead" and e.site.name in around]
    twice: dict[str, list[str]] = {}
    for (name, place), kinds in askers.items():
        if len(kinds) > 1:
            twice.setdefault(f"{place} is asked for by {' and '.join(kinds)}; leave it to one of them", []).append(name)
    problems = [f"{_names(names)}: {problem}" for problem, names in twice.items()]
    if copied:
        problems.append(f"{_names(copied)}: trained whole and adapted beside it as well; choose one of the two")
    if problems:
        raise TargetError.of(problems)


def _refuse_quantised(pairs: Sequence[tuple[Edit, Method]]) -> None:
    """A quantised weight has no gradient, and a copy of it would be another weight."""
    held = [(edit.site.name, method.kind, edit.site.stored) for edit, method in pairs if _is_copy_of_codes(edit)]
    if held:
        (_, kind, stored), names = held[0], [name for name, _, _ in held]
        raise TargetError(
            f"{_names(names)}: stored as {stored}, which {kind} cannot train itself; load the base without quantize, "
            "or adapt it with LoRA or one of its relatives"
        )


def _is_copy_of_codes(edit: Edit) -> bool:
    return edit.place == "instead" and bool(edit.site.stored)


def _names(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _row_name(planned: PlannedEdit) -> str:
    """Last name of a module; of a parameter, its module's as well: `classifier.weight`.  In a base of images and text
    with the part it lies in: `vision: q_proj`."""
    parts = planned.site.name.split(".")
    last = ".".join(parts[-2:] if planned.site.kind == "parameter" or planned.site.bare else parts[-1:])
    return f"{planned.site.tower}: {last}" if planned.site.tower else last


def _table(rows: Sequence[Row]) -> list[str]:
    cells = [("site", "count", "shape", "", "each", "parameters")]
    cells += [
        (row.name, f"{row.count}", " x ".join(map(str, row.shape)), row.note, f"{row.each:,}", f"{row.parameters:,}")
        for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(6)]
    left = (0, 3)
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
