"""Where torch reads the weights of modules that it does not call.

nn.MultiheadAttention         out_proj, always
nn.TransformerEncoderLayer    every part of it, in evaluation without gradients; nn.TransformerEncoder then packs its
                              input into a nested tensor that only that path can read
"""

from torch import nn

from lorica.models.edits.holders import Places, Undo, every_module, together

ENCODERS = (nn.TransformerEncoderLayer, nn.TransformerEncoder)


def is_read_uncalled(places: Places) -> bool:
    """Of a module that is reached from these places."""
    return any(isinstance(parent, nn.MultiheadAttention) for parent, _ in places)


def keep_called(model: nn.Module, module: nn.Module) -> Undo:
    """Modules of torch's encoder around `module` take the path that calls it."""
    encoders = [part for part in every_module(model) if isinstance(part, ENCODERS)]
    around = [part for part in encoders if any(child is module for child in part.modules())]
    layers = [_with_hook(layer) for layer in around if isinstance(layer, nn.TransformerEncoderLayer)]
    return together(
        layers + [_without_nesting(encoder) for encoder in around if isinstance(encoder, nn.TransformerEncoder)]
    )


def _with_hook(layer: nn.Module) -> Undo:
    """torch's fused path is not taken where any hook could be missed."""
    return layer.register_forward_pre_hook(lambda module, inputs: None).remove


def _without_nesting(encoder: nn.TransformerEncoder) -> Undo:
    nested = encoder.use_nested_tensor
    encoder.use_nested_tensor = False
    return lambda: setattr(encoder, "use_nested_tensor", nested)
