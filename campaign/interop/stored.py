"""How the file of an adapter may be written, beyond what today's PEFT does."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

TENSORS = "adapter_model.safetensors"
PREFIX = "base_model.model."
Tensors = dict[str, Tensor]


def rewritten(folder: Path, way: str) -> None:
    """The tensors of an adapter folder in another of the forms that are met."""
    path = folder / TENSORS
    save_file(WAYS[way](load_file(path)), path, metadata={"format": "pt"})


def _as_type(dtype: torch.dtype) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: tensor.to(dtype) for key, tensor in tensors.items()}


def _named(tensors: Tensors) -> Tensors:
    """As `model.state_dict()` gives them, before PEFT takes the adapter's name out."""
    return {_with_name(key): tensor for key, tensor in tensors.items()}


def _with_name(key: str) -> str:
    path, _, leaf = key.rpartition(".")
    if path.endswith((".lora_A", ".lora_B")):
        return f"{path}.default.{leaf}"
    return f"{key}.default" if leaf.startswith("lora_embedding_") else f"{path}.modules_to_save.default.{leaf}"


def _bare(tensors: Tensors) -> Tensors:
    return {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items()}


def _compiled(tensors: Tensors) -> Tensors:
    """As a model under torch.compile names them."""
    return {PREFIX + "_orig_mod." + key.removeprefix(PREFIX): tensor for key, tensor in tensors.items()}


WAYS: dict[str, Callable[[Tensors], Tensors]] = {
    "as PEFT saves it": lambda tensors: tensors,
    "float16": _as_type(torch.float16),
    "bfloat16": _as_type(torch.bfloat16),
    "adapter's name in the keys": _named,
    "keys without prefix": _bare,
    "keys of a compiled model": _compiled,
}
