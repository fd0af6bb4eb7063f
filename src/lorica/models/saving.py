"""A base to a checkpoint folder, as transformers writes one: what any loader of the family reads."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lorica import durable
from lorica.models.frozen_linear import FrozenLinear
from lorica.models.stored import INDEX, SINGLE

SHARD = 5_000_000_000
"""Bytes of a file at most, where a single tensor is not larger."""


def save_base(model: Any, folder: str | Path, shard: int = SHARD) -> Path:
    """Weights in the type they are held in, config, tokenizer and generation config.  The folder appears whole, or not
    at all; RunError where it holds something already."""
    target = Path(folder)
    with durable.new_folder(target) as draft:
        shards = list(_shards(_stored_once(model), shard))
        names = [SINGLE] if len(shards) == 1 else _names(len(shards))
        for name, tensors in zip(names, shards, strict=True):
            draft.write_tensors(name, tensors, metadata={"format": "pt"}, finite=True)
        if len(shards) > 1:
            weight_map = {key: name for name, tensors in zip(names, shards, strict=True) for key in tensors}
            total = sum(tensor.nbytes for tensors in shards for tensor in tensors.values())
            draft.write_json(INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
        _describe(model, draft.path)
    return target


def _stored_once(model: nn.Module) -> dict[str, Tensor]:
    """A tied weight is stored under its first name, one that is quantised or elsewhere dense."""
    tensors = {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}
    linears = {name: module for name, module in model.named_modules() if isinstance(module, FrozenLinear)}
    return tensors | {f"{name}.weight": module.weight for name, module in linears.items()}


def _shards(tensors: Mapping[str, Tensor], limit: int) -> Iterator[dict[str, Tensor]]:
    held: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if held and sum(other.nbytes for other in held.values()) + tensor.nbytes > limit:
            yield held
            held = {}
        held[name] = tensor
    yield held


def _names(count: int) -> list[str]:
    return [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def _describe(model: Any, folder: Path) -> None:
    config = model.config.__class__.from_dict(model.config.to_dict())
    config.dtype = str(model.dtype).removeprefix("torch.")
    config.architectures = [f"{type(config).__name__.removesuffix('Config')}ForCausalLM"]
    for described in (config, model.generation_config, model.tokenizer):
        if described is not None:
            described.save_pretrained(folder)
