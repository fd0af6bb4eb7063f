"""Weights of a quantised base as they were before, read from the checkpoint they came from, one at a time."""

from typing import Any

from torch import Tensor, nn

from lorica.errors import ModelError
from lorica.models.folder import folder_of
from lorica.models.stored import DTYPES, Stored
from lorica.site import Site

REMEDY = "name the checkpoint that was quantised: init: {name: loftq, original: FOLDER-OR-HUB-ID}"


def original_weight(model: nn.Module, site: Site, own: str | None, named: str | None) -> Tensor:
    """W (d_out, d_in) of a linear in the type it is stored in, on the CPU.

    named: the checkpoint to read; None: `own`, where the base was loaded from.  ModelError where it has no such weight,
    or has it quantised.
    """
    source = named or own
    if source is None:
        raise ModelError(f"{site.name}: nothing says where this model was loaded from; {REMEDY}")
    folder = folder_of(source)
    stored = Stored(folder)
    name = stored.named(site.weight, getattr(model, "base_model_prefix", ""))
    if name is None:
        raise ModelError(f"{folder}: no tensor for {site.weight} of {type(model).__name__}; {REMEDY}")
    entry: Any = stored.entries[name]
    dtype = DTYPES.get(entry.dtype)
    if dtype is None or not dtype.is_floating_point:
        raise ModelError(f"{folder}: {name} is stored quantised itself; {REMEDY}")
    if entry.shape != site.shape:
        raise ModelError(f"{folder}: {name} is {entry.shape}, the base has {site.shape}; {REMEDY}")
    return entry.tensor()
