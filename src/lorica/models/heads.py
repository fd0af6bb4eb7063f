"""A head on a base: the model of transformers whose outputs are the answers of a task.

stored in the checkpoint, for the same answers      kept
anything else                                       drawn:  weights N(0, initializer_range), biases 0, norms 1

Each parameter is drawn from (seed, its name) alone, so that the bare model is the same wherever it is loaded.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lorica.errors import ModelError

HeadKind = Literal["sequence_classification", "token_classification", "question_answering", "image_classification"]


@dataclass(frozen=True, kw_only=True)
class Head:
    """kind: what transformers calls it.  outputs: how many numbers it gives for an answer.  labels: their names, where
    they have some.  problem: `problem_type` of transformers' configs.  seed: of what is drawn."""

    kind: HeadKind
    outputs: int
    labels: tuple[str, ...] = ()
    problem: str | None = None
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "labels": list(self.labels)}

    @classmethod
    def of(cls, recorded: Mapping[str, Any]) -> "Head":
        """The head that `to_dict` described.  ModelError where it does not."""
        try:
            return cls(**{**recorded, "labels": tuple(recorded.get("labels") or ())})
        except TypeError as error:
            raise ModelError(f"head: {error}") from error

    def fits(self, config: Any) -> bool:
        """Whether a checkpoint of this config has been taught these answers by these names, in this order."""
        names = getattr(config, "id2label", None) or {}
        return len(names) == self.outputs and (not self.labels or tuple(names.values()) == self.labels)


def head_class(folder: Path, config: Any, head: Head) -> type[nn.Module]:
    """transformers' class with such a head on a base of this config.  ModelError where there is none."""
    mapping = getattr(import_module("transformers"), f"MODEL_FOR_{head.kind.upper()}_MAPPING")
    if type(config) not in mapping:
        raise ModelError(
            f"{folder}: transformers has no {head.kind} model of a {config.model_type}; choose another base"
        )
    found: Any = mapping[type(config)]
    return found


def with_answers(config: Any, head: Head) -> Any:
    """The config of the model with its head; rows are told from their padding by an id that no text holds."""
    config.num_labels = head.outputs
    if head.labels:
        config.id2label = dict(enumerate(head.labels))
        config.label2id = {name: number for number, name in enumerate(head.labels)}
    config.problem_type = head.problem
    words = config.get_text_config()
    if getattr(words, "pad_token_id", None) is None and hasattr(words, "vocab_size"):
        end = getattr(words, "eos_token_id", None)
        words.pad_token_id = (end[0] if isinstance(end, list) else end) or 0
    return config


def labels_of(config: Any, kind: HeadKind) -> tuple[str, ...]:
    """The names of the answers that a checkpoint was taught; none where it has no head of this kind."""
    mapping = getattr(import_module("transformers"), f"MODEL_FOR_{kind.upper()}_MAPPING")
    known = mapping[type(config)].__name__ if type(config) in mapping else None
    return tuple(config.id2label.values()) if known in (getattr(config, "architectures", None) or ()) else ()


def head_modules(model: nn.Module, drawn: Iterable[str] = ()) -> tuple[str, ...]:
    """Paths of the modules that are the head: all beside the base, and what of the base had to be drawn (a pooler)."""
    base = getattr(model, "base_model_prefix", "")
    beside = [name for name, child in model.named_children() if name != base and any(True for _ in child.parameters())]
    inside = {name.rpartition(".")[0] for name in drawn if name.startswith(f"{base}.")}
    return (*beside, *sorted(inside))


def may_be_drawn(model: nn.Module, name: str) -> bool:
    """Whether a parameter that no checkpoint of the base holds belongs to its head."""
    base = getattr(model, "base_model_prefix", "")
    return not name.startswith(f"{base}.") or "pooler" in name.split(".")


@torch.no_grad()
def draw(model: nn.Module, names: Iterable[str], head: Head) -> None:
    """Starts these parameters from the head's seed."""
    std = getattr(model.config, "initializer_range", None) or 0.02
    for name in names:
        parameter = model.get_parameter(name)
        parameter.copy_(_start(name, parameter, std, head.seed))


def _start(name: str, parameter: Tensor, std: float, seed: int) -> Tensor:
    if parameter.dim() < 2:
        return torch.ones(parameter.shape) if name.endswith("weight") else torch.zeros(parameter.shape)
    digest = hashlib.sha256(f"{seed}:head:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
    return torch.randn(parameter.shape, generator=generator) * std
