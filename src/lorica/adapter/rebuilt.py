"""The modules of an adapter file, built from its tensors alone: what can be said of an adapter without its base."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorica.adapter.file import AdapterFile
from lorica.adapter.plan import key_marks, on_meta
from lorica.adapter.tensors import refusal
from lorica.errors import LoricaError
from lorica.kernels import DenseWeight
from lorica.methods import Method, peft_parts
from lorica.methods.contract import Edit, Start, neighbours, stored
from lorica.site import Site


@dataclass(frozen=True, eq=False)
class Rebuilt:
    """One edit of a file and its module, which holds the file's values; W, where it is read, is zero."""

    edit: Edit
    method: Method
    module: nn.Module

    @property
    def site(self) -> Site:
        """As far as the tensors tell: the name, the kind and the shape."""
        return self.edit.site


def rebuilt(file: AdapterFile) -> Iterator[Rebuilt]:
    """One edit after the other, parts of one module in the order in which it has them.  AdapterError where a tensor of
    one is missing, or of another shape than adapter_config.json says."""
    parts, shared = list(_parts(file)), {id(method): dict[str, nn.Module]() for method in file.methods}
    problems = [problem for part in parts for problem in _misfits(part)]
    if problems:
        raise refusal(file.where, problems)
    for part in parts:
        yield Rebuilt(part.edit, part.method, _module(part, shared[id(part.method)]))


def untold(file: AdapterFile) -> list[str]:
    """Keys of tensors that no edit takes: whether they are the base's own, the base alone can tell."""
    taken = {(id(part.method), key) for part in _parts(file) for key in part.keys}
    held = zip(file.methods, _tensors_of_methods(file), strict=True)
    return [key for method, tensors in held for key in tensors if (id(method), key) not in taken]


@dataclass(frozen=True, eq=False)
class _Part:
    """One edit, the tensors that its module keeps, in shape alone, and what of them the file holds under these keys."""

    edit: Edit
    method: Method
    kept: Mapping[str, Tensor]
    held: Mapping[str, Tensor]
    keys: Collection[str]


def _parts(file: AdapterFile) -> Iterator[_Part]:
    found = [
        (edit, method, tensors)
        for method, tensors in zip(file.methods, _tensors_of_methods(file), strict=True)
        for edit in method.edits_of_file(
            tuple(peft_parts.with_owners(tuple(_sites_of_tensors(method, tensors, file.config))))
        )
    ]
    around = neighbours(edit.site.name for edit, _, _ in found if edit.place == "around")
    shared: dict[int, dict[str, nn.Module]] = {id(method): {} for method in file.methods}
    for edit, method, tensors in found:
        kept = stored(on_meta(edit, shared[id(method)]))
        keys = {name: method.file_name(edit, name, around) for name in kept}
        held = {name: tensors[key] for name, key in keys.items() if key in tensors}
        yield _Part(edit, method, kept, held, set(keys.values()))


def in_order(name: str) -> list[tuple[int, str]]:
    """Layer 2 before layer 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]


def by_module(names: Iterable[str]) -> list[str]:
    """In the order of the layers; names under one parent stay in theirs, which for experts is the base's own."""
    return sorted(names, key=lambda name: in_order(name.rpartition(".")[0]))


def _tensors_of_methods(file: AdapterFile) -> Iterator[Mapping[str, Tensor]]:
    """The tensors of each method by its own keys."""
    for method, mark in zip(file.methods, key_marks(file.methods), strict=True):
        own = {key.removeprefix(mark): tensor for key, tensor in file.tensors.items() if key.startswith(mark)}
        try:
            yield method.unpacked(own, file.config, method.numbered_sites(file.config)) if file.peft else own
        except LoricaError as error:
            raise refusal(file.where, str(error).splitlines()) from error


def _sites_of_tensors(method: Method, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Iterator[Site]:
    """Shapes are read off the tensors."""
    located = method.located(tensors, config)
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for key in sorted(tensors, key=lambda key: -key.count(".base_layer.")):  # inner parts come first in a base
        if not method.surplus(key):
            shapes.setdefault(method.site_name(located[key]), {})[key] = tuple(tensors[key].shape)
    for name, held in shapes.items():
        if (site := method.site_of_file(name, held)) is not None:
            yield site


def _module(part: _Part, shared: dict[str, nn.Module]) -> nn.Module:
    blank = torch.zeros(()).expand(part.edit.site.shape)
    weight = DenseWeight(blank) if part.edit.place == "around" else None
    start = Start(torch.Generator(), torch.device("cpu"), torch.float32, weight, blank, shared=shared)
    module = part.edit.build(start)
    for name, tensor in stored(module).items():
        tensor.data = part.held[name].float()
    return module


def _misfits(part: _Part) -> Iterator[str]:
    """A frozen tensor may be of the whole base's size (VeRA), which a file does not tell."""
    for name, kept in part.kept.items():
        held = part.held.get(name)
        if held is None:
            yield f"{part.edit.site.name} lacks {name}"
        elif isinstance(kept, nn.Parameter) and held.shape != kept.shape:
            shapes = f"{tuple(held.shape)} in the file, {tuple(kept.shape)} by adapter_config.json"
            yield f"{part.edit.site.name}: {name} is {shapes}"
