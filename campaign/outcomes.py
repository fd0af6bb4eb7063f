"""What a run has come to: everything that must not depend on what happened to it on the way."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorica.train import checkpoint

TIMINGS = {"seconds", "tokens_per_second", "memory_bytes"}


def outcome(folder: Path) -> dict[str, Any]:
    """Tensors and files by digest, losses by their exact decimal form, the order of rows where a method noted it."""
    found, _ = checkpoint.newest(folder / "checkpoints")
    if found is None or not (folder / "adapter").is_dir():
        return {}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "step": found.step,
        **{group: dict(_digests(tensors)) for group, tensors in found.tensors.items()},
        "rows": {name: tensor.tolist() for name, tensor in found.tensors.get("life", {}).items() if "rows" in name},
        "progress": _timeless(found.state["progress"]),
        "metrics": [_timeless(line) for line in lines],
        "adapter files": {path.name: _sha256(path.read_bytes()) for path in sorted((folder / "adapter").iterdir())},
        "files": sorted(path.name for path in folder.iterdir()),
        "litter": litter(folder),
    }


def litter(folder: Path) -> list[str]:
    """What crashed writers left that nobody took away."""
    return sorted(path.name for path in folder.rglob(".*") if path.name.startswith((".tmp-", ".old-")))


def different(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """The parts in which two outcomes differ; all of them where a run came to nothing."""
    return [part for part in expected if found.get(part) != expected[part]]


def _digests(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    for name, tensor in sorted(tensors.items()):
        yield name, _sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def _timeless(line: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in TIMINGS}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
