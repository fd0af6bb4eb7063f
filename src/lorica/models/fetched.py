"""Blocks whose weights are fetched as they are used: from pinned host memory, or on a CPU from a file."""

from torch import nn


def hosted(layers: int, count: int) -> tuple[int, ...]:
    """Which `count` of the layers: evenly spread, so that a fetch goes on while resident blocks compute."""
    return tuple(index * layers // min(count, layers) for index in range(min(count, layers)))


def fetched_layers(model: nn.Module) -> int:
    """How many blocks of a model have weights that are fetched."""
    return 0
