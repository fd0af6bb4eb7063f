"""load: an adapter file onto a base, strictly: every tensor is used and every target found, or nothing is installed."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lorica.adapter import manifest
from lorica.adapter.attach import built, installed, require_free
from lorica.adapter.attached import Attached, Modules
from lorica.adapter.file import AdapterFile, read
from lorica.adapter.plan import Plan, plan
from lorica.adapter.resized import settled
from lorica.errors import AdapterError, LoricaError, did_you_mean
from lorica.methods import Method
from lorica.models import parameter_of
from lorica.models import sites as sites_of
from lorica.models.vocabulary import missing_tokens
from lorica.site import Site

SHOWN = 12
"""Problems that are told one by one; the rest are counted."""


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
    untrained   an adapter without effect (every B still zero) is accepted
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
    return installed(model, planned, modules)


def plan_on(model: nn.Module, file: AdapterFile) -> Plan:
    """The plan that puts each tensor of the file in its place on this base.  AdapterError unless all fit."""
    found = sites_of(model)
    try:
        planned = plan(*_what_fits(file, found), source=getattr(model, "source", None))
    except LoricaError as error:
        strangers = list(_strangers(file, found)) if file.peft else []
        raise _refusal(file, strangers or str(error).splitlines()) from error
    problems = [*_key_problems(file, planned, found), *_value_problems(file, planned), *_surplus_problems(model, file)]
    if problems:
        raise _refusal(file, problems)
    return Plan(methods=planned.methods, edits=planned.edits, base=found, source=planned.source)


def filled(model: nn.Module, planned: Plan, file: AdapterFile, *, untrained: bool) -> Modules:
    """The plan's modules with the file's values."""
    modules = built(model, planned, seed=0)
    with torch.no_grad():
        for edit in planned.edits:
            for key, tensor in edit.tensors.items():
                modules[edit.key].get_parameter(tensor.name).copy_(file.tensors[key])
    if not untrained and all(_inert(model, edit.site, modules[edit.key]) for edit in planned.edits):
        raise AdapterError(f"{file.where}: this adapter changes nothing; train it, or say untrained=True")
    return modules


def _what_fits(file: AdapterFile, found: Sequence[Site]) -> tuple[tuple[Site, ...], tuple[Method, ...]]:
    """Of a PEFT file, the linears and embeddings that its tensors name and the base has; otherwise the method's own
    config chooses."""
    if not file.peft:
        return tuple(found), file.methods
    (method,) = file.methods
    named, known = _site_names(file), {site.name for site in found}
    keys = [key for key in file.tensors if method.site_name(key) in known and not method.surplus(key)]
    sites = tuple(site for site in found if site.kind not in ("linear", "embedding") or site.name in named)
    return sites, (method.from_file(file.config, keys),)


def _site_names(file: AdapterFile) -> set[str]:
    (method,) = file.methods
    return {method.site_name(key) for key in file.tensors}


def _strangers(file: AdapterFile, found: Sequence[Site]) -> Iterator[str]:
    """Sites that tensors name and the base lacks."""
    known = {site.name for site in found}
    for name in sorted(_site_names(file) - known):
        yield f"{name}: no such site in this base{did_you_mean(name, known)}"


def _key_problems(file: AdapterFile, planned: Plan, found: Sequence[Site]) -> Iterator[str]:
    expected = planned.tensors
    used = set(expected) | {key for key in file.tensors if any(method.surplus(key) for method in file.methods)}
    unused = [key for key in file.tensors if key not in used]
    if file.peft:
        known = {site.name for site in found}
        named = {key: file.methods[0].site_name(key) for key in unused}
        yield from _strangers(file, found) if any(name not in known for name in named.values()) else ()
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
        elif not held.isfinite().all():
            yield f"{key}: holds values that are not finite"


def _surplus_problems(model: nn.Module, file: AdapterFile) -> Iterator[str]:
    """Frozen tensors that PEFT writes beside an adapter on embeddings must be this base's own."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for key in file.tensors:
        if not any(method.surplus(key) for method in file.methods) or not key.endswith(".base_layer.weight"):
            continue
        name = file.methods[0].site_name(key)
        if name not in parameters or not _same(file.tensors[key], parameters[name]):
            yield f"{key}: the file brings its own {name}, which is not this base's; resize or choose the base it names"


def _same(stored: Tensor, parameter: Tensor) -> bool:
    if stored.shape != parameter.shape:
        return False
    narrow = min(stored.dtype, parameter.dtype, key=lambda dtype: dtype.itemsize)
    return torch.equal(stored.to(narrow), parameter.detach().to("cpu", narrow))


def _inert(model: nn.Module, site: Site, module: nn.Module) -> bool:
    """Whether the module leaves the base as it is."""
    if site.kind == "parameter":
        return torch.equal(module(), parameter_of(model, site).to(module().dtype))
    factors = module.factors() if hasattr(module, "factors") else None  # type: ignore[operator]
    return factors is not None and not (factors.A.any() and factors.B.any())


def require_base(file: AdapterFile, model: nn.Module) -> None:
    recorded: Mapping[str, object] = (file.manifest or {}).get("base") or {}
    if manifest.other_base(recorded, model):
        raise AdapterError(
            f"{file.where}: trained on another base ({recorded.get('source') or 'not named'}); load that one, "
            "or say other_base=True to try it on this"
        )


def require_tokens(file: AdapterFile, model: nn.Module) -> None:
    """AdapterError where the adapter was trained with added tokens that this base lacks."""
    missing = missing_tokens(model, (file.manifest or {}).get("added_tokens") or ())
    if missing:
        raise AdapterError(
            f"{file.where}: trained with tokens that this base lacks; add them first: "
            f"lorica.add_tokens(model, {list(missing)})"
        )


def _refusal(file: AdapterFile, problems: Sequence[str]) -> LoricaError:
    more = [f"{file.where}: and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    return AdapterError.of([f"{file.where}: {problem}" for problem in problems[:SHOWN]] + more)
