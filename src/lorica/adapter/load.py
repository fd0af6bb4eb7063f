"""load: an adapter file onto a base, strictly: every tensor is used and every target found, or nothing is installed."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lorica.adapter import tensors
from lorica.adapter.attach import built, installed, require_free
from lorica.adapter.attached import Attached
from lorica.adapter.effect import inert, not_finished, unfinished, without_effect
from lorica.adapter.file import AdapterFile, read
from lorica.adapter.installed import Modules
from lorica.adapter.origin import judged
from lorica.adapter.plan import Plan, plan
from lorica.adapter.resized import settled
from lorica.adapter.tensors import SHOWN, refusal
from lorica.errors import AdapterError, LoricaError, did_you_mean
from lorica.methods import Method
from lorica.models import sites as sites_of
from lorica.models.stored import Stored
from lorica.models.vocabulary import missing_tokens
from lorica.models.walking import base_modules, tied_names
from lorica.site import Site

ADAPTED = ("linear", "embedding", "conv", "experts")
"""Kinds of site that low-rank tensors sit on."""
MERGE = "merge it into its base with PEFT's merge_and_unload"


def load(
    model: nn.Module,
    adapter: str | Path | AdapterFile,
    *,
    trainable: bool = True,
    untrained: bool = False,
    other_base: bool = False,
) -> Attached:
    """The adapter of a folder or hub id on `model`, in place.

    trainable   its parameters require gradients, so that training goes on from it
    untrained   an adapter without effect (every B still zero), or not finished, is accepted
    other_base  a base with another fingerprint than the recorded one is accepted, where names and shapes fit

    AdapterError names everything that does not fit; the model is then as it was.
    """
    require_free(model)
    file = adapter if isinstance(adapter, AdapterFile) else read(adapter)
    require_tokens(file, model)
    if not other_base:
        require_base(file, model)
    file = settled(model, file)
    planned = plan_on(model, file)
    modules = filled(model, planned, file, untrained=untrained)
    if not trainable:
        for module in modules.values():
            module.requires_grad_(False)
    attached = installed(model, planned, modules)
    attached.came_from(file)
    return attached


def plan_on(model: nn.Module, file: AdapterFile, stored: Stored | None = None) -> Plan:
    """The plan that puts each tensor of the file in its place on this base.  AdapterError unless all fit.

    stored: the checkpoint that has the values of a base which is there in shape alone.
    """
    found = sites_of(model)
    try:
        planned = plan(
            *_what_fits(file, _with_copies(model, file, found)), source=getattr(model, "source", None), trained=True
        )
    except LoricaError as error:
        strangers = list(_strangers(model, file, found)) if file.peft else []
        raise refusal(file.where, strangers or str(error).splitlines()) from error
    own = _own_keys(model, file, stored) - planned.tensors.keys()
    problems = [*_key_problems(model, file, planned, own), *_value_problems(file, planned)]
    problems += _surplus_problems(file, own)
    methods = planned.methods if file.peft else ()
    told = [problem for each in methods for problem in each.peft_problems(planned.of(each))]
    problems = [f"{problem}; {MERGE}" for problem in told] or problems
    if problems:
        raise refusal(file.where, problems)
    return Plan(methods=planned.methods, edits=planned.edits, base=found, source=planned.source)


def _with_copies(model: nn.Module, file: AdapterFile, found: tuple[Site, ...]) -> tuple[Site, ...]:
    """The sites that a file may name: each of several tied places may have a copy of its own in a PEFT file."""
    if not file.peft:
        return found
    (method,) = file.methods
    named, tied = {method.parameter_name(key) for key in file.tensors}, tied_names(model)
    copies = named & tied.keys()
    if not copies:
        return found
    every = dict(model.named_parameters(remove_duplicate=False))
    known = tuple(replace(site, alone=site.name in copies) for site in found)
    further = sorted(copies - {site.name for site in found})
    return known + tuple(
        Site(
            name=name,
            kind="parameter",
            shape=tuple(every[name].shape),
            dtype=str(every[name].dtype).removeprefix("torch."),
            alone=True,
        )
        for name in further
    )


def filled(model: nn.Module, planned: Plan, file: AdapterFile, *, untrained: bool) -> Modules:
    """The plan's modules with the file's values."""
    modules = built(model, planned, seed=0)
    with torch.no_grad():
        for edit in planned.edits:
            for key, tensor in edit.tensors.items():
                tensor.of(modules[edit.key]).copy_(file.tensors[key])
    if not untrained and inert(model, planned, modules):
        raise AdapterError(without_effect(file.where))
    if not untrained and (reason := unfinished(planned, file.tensors)):
        raise AdapterError(not_finished(file.where, reason))
    return modules


def _what_fits(file: AdapterFile, found: Sequence[Site]) -> tuple[tuple[Site, ...], tuple[Method, ...]]:
    """Of a PEFT file, the weights that its tensors name and the base has; otherwise the method's own config chooses."""
    if not file.peft:
        return tuple(found), file.methods
    (method,) = file.methods
    keys, known = method.located(file.tensors, file.config, tuple(found)), {site.name for site in found}
    named = {method.site_name(key) for key in keys.values()}
    kept = [key for own, key in keys.items() if method.site_name(key) in known and not method.surplus(own)]
    sites = tuple(site for site in found if site.kind not in ADAPTED or site.name in named)
    return sites, (method.from_file(file.config, kept),)


def _site_names(file: AdapterFile, found: Sequence[Site]) -> dict[str, str]:
    """The site that each key of a PEFT file means on this base."""
    (method,) = file.methods
    return {
        key: method.site_name(meant) for key, meant in method.located(file.tensors, file.config, tuple(found)).items()
    }


def _strangers(model: nn.Module, file: AdapterFile, found: Sequence[Site]) -> Iterator[str]:
    """Sites that tensors name and the base lacks."""
    known = {site.name for site in found}
    yield from _strange(model, sorted(set(_site_names(file, found).values()) - known), known)


def _strange(model: nn.Module, names: Sequence[str], known: Collection[str]) -> Iterator[str]:
    kinds = {name: type(module).__name__ for name, module in base_modules(model)}
    for number, name in enumerate(names):
        if name in kinds:
            yield f"{name}: a {kinds[name]}, on which no adapter of PEFT is read; {MERGE}"
        else:
            yield f"{name}: no such site in this base{did_you_mean(name, known) if number < SHOWN else ''}"


def _key_problems(model: nn.Module, file: AdapterFile, planned: Plan, own: set[str]) -> Iterator[str]:
    expected = planned.tensors
    used = own.union(expected, (key for key in file.tensors if any(method.surplus(key) for method in file.methods)))
    unused = [key for key in file.tensors if key not in used]
    if file.peft and unused:
        found = sites_of(model)
        known, every = {site.name for site in found}, _site_names(file, found)
        named = {key: every[key] for key in unused}
        yield from _strange(model, sorted({name for name in named.values() if name not in known}), known)
        unused = [key for key in unused if named[key] in known]
    yield from (f"{key}: in the file, and nothing in adapter_config.json asks for it" for key in unused)
    yield from (f"{key}: missing from the file" for key in expected if key not in file.tensors)


def _value_problems(file: AdapterFile, planned: Plan) -> Iterator[str]:
    for key, tensor in planned.tensors.items():
        held = file.tensors.get(key)
        if held is None:
            continue
        if tuple(held.shape) != tensor.shape:
            yield f"{key}: {tuple(held.shape)} in the file, {tensor.shape} by this base and adapter_config.json"
        elif not tensors.finite(held):
            yield f"{key}: holds values that are not finite"


def _own_keys(model: nn.Module, file: AdapterFile, stored: Stored | None) -> set[str]:
    """Keys whose tensors are this base's own, unchanged: PEFT writes embeddings beside an adapter on them, and every
    module whose path holds `lora_`."""
    if not file.peft:
        return set()
    (method,) = file.methods
    parameters = dict(model.named_parameters(remove_duplicate=False))
    named = {key: method.parameter_name(key) for key in file.tensors}
    return {
        key for key, name in named.items() if name in parameters and _is_own(file.tensors[key], name, model, stored)
    }


def _surplus_problems(file: AdapterFile, own: set[str]) -> Iterator[str]:
    """Frozen tensors that PEFT writes beside an adapter on embeddings must be this base's own."""
    for key in file.tensors:
        if not any(method.surplus(key) for method in file.methods) or not key.endswith(".base_layer.weight"):
            continue
        if key not in own:
            name = file.methods[0].site_name(key)
            yield f"{key}: the file brings its own {name}, which is not this base's; resize or choose the base it names"


def _is_own(held: Tensor, name: str, model: nn.Module, stored: Stored | None) -> bool:
    """Whether the values of a tensor of the file and of the base's parameter agree in the narrower type."""
    value = model.get_parameter(name).detach()
    if held.shape != value.shape:
        return False
    if value.is_meta:
        assert stored is not None
        prefix, names = getattr(model, "base_model_prefix", ""), (name, *tied_names(model).get(name, ()))
        found = next((s for s in (stored.named(each, prefix) for each in names) if s is not None), None)
        if found is None:
            return False
        value = stored.entries[found].tensor()
    narrow = min(held.dtype, value.dtype, key=lambda dtype: dtype.itemsize)
    return torch.equal(held.to("cpu", narrow), value.to("cpu", narrow))


def require_base(file: AdapterFile, model: nn.Module) -> None:
    """AdapterError where the adapter was certainly trained on another base than this bare one."""
    verdict = judged(file.manifest, model)
    if verdict.same is False:
        recorded: Mapping[str, object] = (file.manifest or {}).get("base") or {}
        raise AdapterError(
            f"{file.where}: trained on another base ({recorded.get('source') or 'not named'}): {verdict.reason}; "
            "load that one, or say other_base=True (--other-base) to try it on this"
        )


def require_tokens(file: AdapterFile, model: nn.Module) -> None:
    """AdapterError where the adapter was trained with added tokens that this base lacks."""
    missing = missing_tokens(model, (file.manifest or {}).get("added_tokens") or ())
    if missing:
        raise AdapterError(
            f"{file.where}: trained with tokens that this base lacks; add them first: "
            f"lorica.add_tokens(model, {list(missing)})"
        )
