"""What a model is, object for object and byte for byte, so that two moments can be compared."""

from typing import Any

import torch
from torch import Tensor, nn


def traces(model: nn.Module) -> dict[str, Any]:
    """Every object of a model by identity, in order, with its class, bytes, mode, hooks and attributes."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        plain = {key: value for key, value in vars(module).items() if not key.startswith("_")}
        found[name] = (
            id(module),
            type(module),
            module.training,
            {leaf: (id(p), p is not None and _bits(p)) for leaf, p in module._parameters.items()},
            {leaf: (id(b), b is not None and _bits(b)) for leaf, b in module._buffers.items()},
            [(leaf, id(child)) for leaf, child in module._modules.items()],
            (len(module._forward_hooks), len(module._forward_pre_hooks)),
            {
                key: id(value) if isinstance(value, nn.Module) or "config" in key else repr(value)
                for key, value in plain.items()
            },
        )
    return found


def _bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()
