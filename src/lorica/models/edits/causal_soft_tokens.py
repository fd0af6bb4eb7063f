"""Soft tokens in transformers' causal stacks (GPT-2 and its kin): P learned vectors before the first token of each row.

p x x x -> stack -> drop p          the first pass of a row; the cache then holds P places more than there are tokens
x       -> stack                    later passes: mask and positions move up by P
"""

import inspect
from typing import Any

from torch import nn

from lorica.errors import TargetError
from lorica.models.edits.holders import Undo, together
from lorica.models.edits.soft_tokens import SLOT, SoftTokens, by_name, refuse_too_long
from lorica.site import Site


def reads(model: nn.Module, stack: nn.Module) -> bool:
    """Whether the module that holds the embedding is a causal stack that takes embeddings and a cache."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False) or not getattr(stack, "is_decoder", True):
        return False
    return {"inputs_embeds", "past_key_values", "attention_mask"} <= inspect.signature(stack.forward).parameters.keys()


def install(site: Site, stack: nn.Module, adapter: nn.Module) -> Undo:
    if SLOT in stack._modules:
        raise TargetError(f"{site.name} has soft tokens before it already; detach those first")
    soft = CausalSoftTokens(adapter.train(stack.training))
    stack.add_module(SLOT, soft)
    hooks = [
        stack.register_forward_pre_hook(soft.lengthen, with_kwargs=True),
        stack.register_forward_hook(soft.dropped, with_kwargs=True),
    ]

    def forget() -> None:
        del stack._modules[SLOT]

    return together([forget, *(hook.remove for hook in hooks)])


class CausalSoftTokens(SoftTokens):
    """Which rows have begun is read off the cache they come with."""

    def lengthen(self, stack: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        given = by_name(stack.forward, args, kwargs)
        held = _held(given.get("past_key_values"))
        if not held:
            return super().lengthen(stack, (), given)
        places = given["inputs_embeds"] if given.get("input_ids") is None else given["input_ids"]
        refuse_too_long(stack, held - self.length + places.shape[1], self.length)
        return (), {name: self._later(name, value) for name, value in given.items()}

    def _later(self, name: str, value: Any) -> Any:
        if value is None or name not in ("attention_mask", "position_ids"):
            return value
        return value + self.length if name == "position_ids" else self._longer(name, value)

    def dropped(self, stack: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        """The cache has grown by now: in the first pass of a row it holds just what this pass has read."""
        embedded, cache = kwargs.get("inputs_embeds"), kwargs.get("past_key_values")
        first = embedded is not None and (cache is None or _held(cache) in (0, embedded.shape[1]))
        return self.drop(stack, args, output) if first else output


def _held(cache: Any) -> int:
    """Places that a cache holds."""
    return 0 if cache is None else int(cache.get_seq_length())
