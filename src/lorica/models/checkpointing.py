"""Gradient checkpointing: the first blocks are computed again in the backward pass instead of kept.

Dropout is a function of where a token stands, so what is computed again is the same to the bit.
"""

from functools import partial
from typing import Any

import torch
from torch import nn

from lorica.errors import ModelError
from lorica.kernels.elsewhere import Store
from lorica.models.decoder import Decoder
from lorica.models.edits.holders import Undo, together
from lorica.models.entry import Reentering
from lorica.models.recompute import Recompute, Waiting, recomputed


def checkpoint(model: nn.Module, layers: int | None = None, store: Store | None = None) -> Undo:
    """Recomputes the first `layers` blocks, or all; their inputs wait in `store`, None: on the device.

    ModelError where the base has no blocks that are known.
    """
    decoders, blocks = _decoders(model), _blocks(model)
    recompute = recomputed if store is None else Waiting(store)
    if decoders:
        return together([_in_decoder(decoder, layers, recompute) for decoder in decoders])
    if not blocks:
        raise ModelError(
            f"gradient_checkpointing: {type(model).__name__} has no blocks that can be recomputed; "
            "the decoder family and transformers' models have; leave it out"
        )
    return together([_wrapped(block, Reentering(recompute)) for block in blocks[:layers]])


def recomputable(model: nn.Module) -> int:
    """How many blocks can be recomputed."""
    return sum(len(decoder.layers) for decoder in _decoders(model)) or len(_blocks(model))


def _decoders(model: nn.Module) -> list[Decoder]:
    return [module for module in model.modules() if isinstance(module, Decoder)]


def _blocks(model: nn.Module) -> list[nn.Module]:
    """Those of transformers that know recomputation."""
    return [m for m in model.modules() if any(k.__name__ == "GradientCheckpointingLayer" for k in type(m).__mro__)]


def _in_decoder(decoder: Decoder, layers: int | None, recompute: Recompute) -> Undo:
    before = decoder.recomputed_layers, decoder.recompute
    decoder.recomputed_layers = len(decoder.layers) if layers is None else min(layers, len(decoder.layers))
    decoder.recompute = recompute

    def undo() -> None:
        decoder.recomputed_layers, decoder.recompute = before

    return undo


def _no_cache(value: Any) -> Any:
    """Computed again, a block would write its keys there twice."""
    return None if hasattr(value, "get_seq_length") else value


def _wrapped(block: nn.Module, recompute: Reentering) -> Undo:
    """transformers' own switch works in training mode alone, in which its blocks also drop: the base stays as it is."""
    own, plain = block.__dict__.get("forward"), block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return plain(*args, **kwargs)
        named = {name: _no_cache(value) for name, value in kwargs.items()}
        return recompute(partial(plain, **named), *map(_no_cache, args))

    block.__dict__["forward"] = forward

    def undo() -> None:
        del block.__dict__["forward"]
        if own is not None:
            block.__dict__["forward"] = own

    return undo
