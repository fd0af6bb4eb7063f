"""Prefixes in transformers' families whose attention goes through its AttentionInterface (BERT, T5, ViT, GPT-2 ...).

One attention layer gets a config of its own that names our function.  It puts P learned keys and values before those
at hand, after any cache, so they are never stored in one; opens the mask and leaves the position bias at zero there;
and calls the function that the layer had before.  Positions of real tokens move up, see `positions.py`.
"""

import copy
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lorica.errors import TargetError
from lorica.models import foreign_attention
from lorica.models.edited import Beside
from lorica.models.edits.holders import Undo
from lorica.models.edits.positions import moved
from lorica.site import Site

FUNCTION = "lorica_prefix"
SLOT = "prefix_edit"
UNDERSTOOD = ("eager", "sdpa", foreign_attention.FUNCTION)


class InterfacePrefix(Beside):
    """Registered in the attention layer; `config` is the one that the layer had."""

    def __init__(self, adapter: nn.Module, config: Any) -> None:
        super().__init__(adapter)
        self.config = config


def install(model: nn.Module, site: Site, attention: nn.Module, adapter: nn.Module) -> Undo:
    """TargetError where the layer does not go through the interface, or by a kernel that takes no open mask."""
    if SLOT in attention._modules:
        raise TargetError(f"{site.name} has a prefix already; detach that first")
    _refuse(site, attention)
    config = attention.config
    stay = moved(model, site, adapter()[0].shape[0])
    _registered()
    attention.add_module(SLOT, InterfacePrefix(adapter.train(attention.training), config))
    attention.config = _naming_ours(config)

    def undo() -> None:
        attention.config = config
        del attention._modules[SLOT]
        stay()

    return undo


def _refuse(site: Site, attention: nn.Module) -> None:
    family = sys.modules[type(attention).__module__]
    implementation = getattr(getattr(attention, "config", None), "_attn_implementation", None)
    if not hasattr(family, "ALL_ATTENTION_FUNCTIONS") or implementation is None:
        raise TargetError(
            f"{site.name}: {type(attention).__name__} takes no prefix; the decoder family and those of transformers "
            "that use its AttentionInterface do (BERT, T5, ViT, GPT-2)"
        )
    if foreign_attention.selects(attention):
        raise TargetError(
            f"{site.name}: {type(attention).__name__} chooses its keys by an indexer, and takes no prefix"
        )
    if implementation not in UNDERSTOOD or getattr(attention, "reorder_and_upcast_attn", False):
        raise TargetError(
            f"{site.name}: a prefix needs attention by eager or sdpa, not {implementation}; "
            "load the base with attn_implementation='sdpa'"
        )


def _naming_ours(config: Any) -> Any:
    own = copy.copy(config)
    own._attn_implementation_internal = FUNCTION
    return own


def _registered() -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(FUNCTION, attend)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """query (B, H, q, E), key and value (B, K, k, E), mask (B or 1, 1 or H, q, k), True or 0 where seen, or None."""
    prefix: Any = module._modules[SLOT]
    keys, values = (_before(part, like) for part, like in zip(prefix.adapter(), (key, value), strict=True))
    implementation = prefix.config._attn_implementation
    if attention_mask is None and implementation != "eager":
        attention_mask = foreign_attention.implied(module, query, key, options.get("is_causal"))
    length = keys.shape[2]
    if options.get("position_bias") is not None:
        options["position_bias"] = nn.functional.pad(options["position_bias"], (length, 0))
    return _function(module, implementation)(
        module,
        query,
        torch.cat([keys, key], 2),
        torch.cat([values, value], 2),
        _opened(attention_mask, length),
        **options,
    )


def _before(part: Tensor, like: Tensor) -> Tensor:
    """(P, K, E) -> (B, K, P, E)."""
    return part.transpose(0, 1).to(like.dtype).expand(like.shape[0], -1, -1, -1)


def _opened(mask: Tensor | None, length: int) -> Tensor | None:
    if mask is None:
        return None
    return nn.functional.pad(mask, (length, 0), value=True if mask.dtype == torch.bool else 0.0)


def _function(module: nn.Module, implementation: str) -> Callable[..., Any]:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    eager = sys.modules[type(module).__module__].eager_attention_forward  # type: ignore[attr-defined]
    return ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager)
