"""Deltas: what an adapter adds to each weight, W' - W = s B A, from its file alone.

The LoRA family has them, whatever the rank, the scale and the layer.  What has none is told, all of it at once: edits
that change no weight, copies of parameters, and changes that depend on W or are no product.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lorica.adapter.effect import not_finished, without_effect
from lorica.adapter.file import AdapterFile
from lorica.adapter.rebuilt import Rebuilt, by_module, rebuilt
from lorica.adapter.spectra import Product
from lorica.adapter.tensors import refusal
from lorica.errors import AdapterError
from lorica.kernels import LowRank
from lorica.methods.contract import stored
from lorica.site import Site

AROUND = "its change of W is no product that the file alone tells; leave it out, or merge it with lorica merge"
INSTEAD = "saved whole or trained by itself, and a file has no difference to its base; leave that adapter out"
NO_WEIGHT = "changes no weight, so there is nothing to weigh; leave that adapter out"


@dataclass(frozen=True, eq=False)
class Delta:
    """One weight's own; a product with rank 0 where nothing is left of it."""

    site: Site
    product: Product


Deltas = Mapping[str, Delta]
"""By the name of the site, layer 2 before layer 10, and parts of one module in its own order."""


@torch.no_grad()
def deltas(file: AdapterFile, *, untrained: bool = False) -> Deltas:
    """Of every weight that the adapter changes.  AdapterError naming each kind of edit that has none, an adapter
    without effect, and one that is not finished unless `untrained`."""
    found, problems, state = dict[str, Delta](), dict[str, list[str]](), dict[int, dict[str, Mapping[str, Tensor]]]()
    for part in rebuilt(file):
        state.setdefault(id(part.method), {})[part.site.name] = stored(part.module)
        factors = factors_of(part)
        if factors is None:
            problems.setdefault(_without(part), []).append(part.site.name)
        else:
            found[part.site.name] = Delta(part.site, Product.of(factors))
    if problems:
        raise refusal(file.where, list(_told(problems)))
    if not untrained:
        _require_finished(file, state)
    if not untrained and not any(delta.product.rank for delta in found.values()):
        raise AdapterError(without_effect(file.where))
    return {name: found[name] for name in by_module(found)}


def factors_of(part: Rebuilt) -> LowRank | None:
    """The product that an edit is, where it is one."""
    module = part.module
    return module.factors() if hasattr(module, "factors") else None  # type: ignore[operator]


def _without(part: Rebuilt) -> str:
    reasons = {"around": AROUND, "instead": INSTEAD}
    return f"{part.method.kind}: {reasons.get(part.edit.place, NO_WEIGHT)}"


def _told(problems: Mapping[str, list[str]]) -> Iterator[str]:
    for reason, names in problems.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield f"{names[0]}{more}, {reason}"


def _require_finished(file: AdapterFile, state: Mapping[int, Mapping[str, Mapping[str, Tensor]]]) -> None:
    told = [method.unfinished(state.get(id(method), {})) for method in file.methods]
    recorded = (file.manifest or {}).get("unfinished")
    reason = next((each for each in (*told, recorded) if each), None)
    if reason is not None:
        raise AdapterError(not_finished(file.where, str(reason)))
