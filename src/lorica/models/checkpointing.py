"""Gradient checkpointing: the first blocks are computed again in the backward pass instead of kept.

Dropout is a function of where a token stands, so what is computed again is the same to the bit.
"""

from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from lorica.errors import ModelError
from lorica.models.decoder import Decoder
from lorica.models.edits.holders import Undo, together
from lorica.models.entry import Reentering


def checkpoint(model: nn.Module, layers: int | None = None) -> Undo:
    """Recomputes the first `layers` blocks, or all.  ModelError where the base has no blocks that are known."""
    decoders = [module for module in model.modules() if isinstance(module, Decoder)]
    if decoders:
        return together([_in_decoder(decoder, layers) for decoder in decoders])
    blocks = [module for module in model.modules() if _can_recompute(module)]
    if not blocks:
        raise ModelError(
            f"gradient_checkpointing: {type(model).__name__} has no blocks that can be recomputed; "
            "the decoder family and transformers' models have; leave it out"
        )
    recompute = Reentering(partial(torch_checkpoint, use_reentrant=False))
    return together([_set(module, recompute) for module in (*_stacks(model), *blocks[:layers])])


def recomputable(model: nn.Module) -> int:
    """How many blocks can be recomputed."""
    decoders = [module for module in model.modules() if isinstance(module, Decoder)]
    return sum(len(decoder.layers) for decoder in decoders) or sum(map(_can_recompute, model.modules()))


def _in_decoder(decoder: Decoder, layers: int | None) -> Undo:
    before = decoder.recomputed_layers
    decoder.recomputed_layers = len(decoder.layers) if layers is None else min(layers, len(decoder.layers))
    return lambda: setattr(decoder, "recomputed_layers", before)


def _can_recompute(module: nn.Module) -> bool:
    return any(kind.__name__ == "GradientCheckpointingLayer" for kind in type(module).__mro__)


def _stacks(model: nn.Module) -> list[nn.Module]:
    """What holds blocks of transformers: told too, it keeps no cache of keys that recomputation would fill twice."""
    return [m for m in model.modules() if "gradient_checkpointing" in m.__dict__ and hasattr(m, "config_class")]


def _set(block: nn.Module, function: Reentering) -> Undo:
    """transformers reads these two attributes of a block; the class has the first, switched off."""
    ours: dict[str, Any] = {"gradient_checkpointing": True, "_gradient_checkpointing_func": function}
    before = {name: block.__dict__[name] for name in ours if name in block.__dict__}
    block.__dict__.update(ours)

    def undo() -> None:
        for name in ours:
            del block.__dict__[name]
        block.__dict__.update(before)

    return undo
