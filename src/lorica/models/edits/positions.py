"""A prefix takes up positions: those of real tokens move up by its length, where a family has positions that can move.

    GPT-2, BERT         the table of positions is looked up P places further on
    OPT, BART           it counts by itself, from the mask or from the length of the cache: told to begin P further on
    rotary families     real tokens are turned as if they stood P places further on; the prefix is not turned at all
    T5, ViT             distances alone, or one place for each patch: nothing to move

It is what a prefix in the cache does, as the authors of prefix tuning and PEFT have it.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorica.errors import ModelError, TargetError
from lorica.models.edits.holders import Undo, together
from lorica.models.families import roles_of
from lorica.site import Site


def moved(model: nn.Module, site: Site, length: int) -> Undo:
    """Positions move while any attention of the stack has a prefix.  TargetError where two have different lengths."""
    if site.roles == ("cross_attention",):
        return lambda: None
    return together([_counted(site, module, length) for module in _positions(model, site)])


@dataclass(eq=False)
class Shift:
    """A hook on what turns positions into vectors; `users` attentions want it there."""

    length: int
    users: int = 0
    handle: Any = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(module, nn.Embedding) and type(module).forward is nn.Embedding.forward:
            return (_within(module, args[0] + self.length), *args[1:]), kwargs
        if counts_itself(module):
            given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
            return (), _further(module, given, self.length)
        if "position_ids" in kwargs:
            return args, {**kwargs, "position_ids": kwargs["position_ids"] + self.length}
        return (args[0], args[1] + self.length, *args[2:]), kwargs


def _counted(site: Site, module: nn.Module, length: int) -> Undo:
    shift = next((hook for hook in module._forward_pre_hooks.values() if isinstance(hook, Shift)), None)
    if shift is None:
        shift = Shift(length)
        shift.handle = module.register_forward_pre_hook(shift, with_kwargs=True)
    if shift.length != length:
        raise TargetError(f"{site.name}: a prefix of {length} where other layers have {shift.length}; use one length")
    shift.users += 1

    def forget() -> None:
        shift.users -= 1
        if not shift.users:
            shift.handle.remove()

    return forget


def _positions(model: nn.Module, site: Site) -> list[nn.Module]:
    """Of the nearest module around the attention that has any."""
    path = site.name.split(".")
    for depth in range(len(path) - 1, -1, -1):
        above = model.get_submodule(".".join(path[:depth]))
        if found := [module for name, module in above.named_modules() if _places(name, module)]:
            return found
    return []


def _places(name: str, module: nn.Module) -> bool:
    if "position" in roles_of(name, ""):
        return type(module).forward is nn.Embedding.forward or counts_itself(module)
    return type(module).__name__.endswith("RotaryEmbedding")


def counts_itself(module: nn.Module) -> bool:
    """Whether a table of positions works out where tokens stand, as those of BART, OPT and their kin."""
    return "past_key_values_length" in inspect.signature(module.forward).parameters


def _further(module: nn.Module, given: dict[str, Any], length: int) -> dict[str, Any]:
    """The arguments under which each token stands `length` places further on.  OPT's past is cut off what it counts."""
    past = given.get("past_key_values_length", 0)
    if given.get("position_ids") is not None:
        places = given["position_ids"]
    elif "attention_mask" in given:
        mask = given["attention_mask"]
        places = (mask.cumsum(1) * mask - 1).long()[:, past:]
    else:
        tokens = next(value for value in given.values() if value is not None)
        _require_room(module, past + length + (tokens if isinstance(tokens, torch.Size) else tokens.shape)[1] - 1)
        return {**given, "past_key_values_length": past + length}
    _require_room(module, int(places.max()) + length)
    return {**given, "position_ids": places + length}


def _require_room(module: nn.Module, last: int) -> None:
    """A table that is no Embedding is made longer by itself."""
    rows = module.num_embeddings - getattr(module, "offset", 0) if isinstance(module, nn.Embedding) else last + 1
    if last >= rows:
        raise _too_far(last, rows)


def _within(table: nn.Embedding, places: Tensor) -> Tensor:
    if places.numel() and int(places.max()) >= table.num_embeddings:
        raise _too_far(int(places.max()), table.num_embeddings)
    return places


def _too_far(last: int, rows: int) -> ModelError:
    return ModelError(f"prefix: with it the row reaches position {last}, and the base has {rows}; shorten one of them")
