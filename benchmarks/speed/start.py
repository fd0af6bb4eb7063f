"""The same start for every side: A, B and a head drawn from a tensor's own name, whatever wraps it.

A ~ N(0, 1/d_in)      B ~ N(0, 0.05^2)      a head's weight ~ N(0, 0.02^2), its bias 0
"""

import re
import zlib
from collections.abc import Iterable

import torch
from torch import Tensor

WRAPPERS = re.compile(r"base_model\.model\.|_orig_mod\.|\.default|\.modules_to_save|\.original_module")


def plain(name: str) -> str:
    return WRAPPERS.sub("", name)


@torch.no_grad()
def same_start(parameters: Iterable[tuple[str, Tensor]]) -> int:
    """Fills what is trained beside the base's own weights; how many tensors were filled."""
    found = [(plain(name), tensor) for name, tensor in parameters]
    return sum(_fill(name, tensor) for name, tensor in found)


def _fill(name: str, tensor: Tensor) -> bool:
    if "lora_A" in name:
        scale = tensor.shape[-1] ** -0.5
    elif "lora_B" in name:
        scale = 0.05
    elif "classifier" in name:
        scale = 0.02 if tensor.dim() > 1 else 0.0
    else:
        return False
    draw = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    tensor.copy_(scale * torch.randn(tensor.shape, generator=draw))
    return True
