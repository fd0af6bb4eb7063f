"""Sabotage: our side is broken on purpose, and the matrix must turn red wherever the broken part is used."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from campaign.interop.cases import Case, cases
from lorica.adapter import Attached
from lorica.methods import lora
from lorica.methods.lora import LoRA
from lorica.models import parameter_of

LOADING = import_module("lorica.adapter.load")
WITNESSES = ("bart", "gpt2")
"""Families on which controls are run."""


@dataclass(frozen=True)
class Control:
    """What is broken, how, and the options that must notice."""

    name: str
    broken: Callable[[], AbstractContextManager[Any]]
    options: Sequence[str]

    def cases(self) -> list[Case]:
        return [case for case in cases() if case.option in self.options and case.family.name in WITNESSES]

    def __repr__(self) -> str:
        return self.name


def _scale(divisor: Callable[[LoRA, int], float], alpha: Callable[[LoRA, Any], float]):
    return lambda: patch.object(LoRA, "scale", lambda self, site: alpha(self, site) / divisor(self, self.rank(site)))


def _alpha(method: LoRA, site: Any) -> float:
    return method.alpha_of(site)


def _root(method: LoRA, r: int) -> float:
    return math.sqrt(r) if method.rslora else r


def _forgets(chosen: Callable[[Any], bool], value: Callable[[nn.Module, Any, nn.Parameter], Any]):
    """Loading, but the tensors of the first chosen edit keep what they had."""

    @contextmanager
    def broken() -> Iterator[None]:
        filled = LOADING.filled

        def forgetful(model: nn.Module, planned: Any, file: Any, **how: Any) -> Any:
            modules = filled(model, planned, file, **how)
            edit = next((edit for edit in planned.edits if chosen(edit)), None)
            if edit is not None:
                with torch.no_grad():
                    parameter = list(modules[edit.key].parameters())[-1]
                    parameter.copy_(value(model, edit.site, parameter))
            return modules

        with patch.object(LOADING, "filled", forgetful):
            yield

    return broken


def _original(model: nn.Module, site: Any, parameter: nn.Parameter) -> Any:
    return parameter_of(model, site)


def _unscaled_embedding():
    def forward(self: Any, ids: Any, base: nn.Module, flow: Any) -> Any:
        return base(ids) + self.scale * (nn.functional.embedding(ids, self.A.T) @ self.B.T)

    return patch.object(lora.LoRAEmbedding, "forward", forward)


def _written_without(field: str, value: Any):
    @contextmanager
    def broken() -> Iterator[None]:
        entries = LoRA.peft_config
        with patch.object(LoRA, "peft_config", lambda self, *given: {**entries(self, *given), field: value}):
            yield

    return broken


@contextmanager
def _one_tensor_unwritten() -> Iterator[None]:
    state = Attached.state

    def short(self: Attached) -> dict[str, Any]:
        tensors = state(self)
        tensors.popitem()
        return tensors

    with patch.object(Attached, "state", short):
        yield


CONTROLS = (
    Control("scale forgotten", _scale(lambda m, r: 1.0, lambda m, s: 1.0), ("attention", "rslora", "embedding")),
    Control("alpha over r for rslora", _scale(lambda m, r: r, _alpha), ("rslora", "patterns with rslora")),
    Control("alpha_pattern ignored", _scale(_root, lambda m, s: m.alpha), ("patterns", "patterns with rslora")),
    Control(
        "one low-rank tensor skipped",
        _forgets(lambda edit: edit.edit.place == "around", lambda model, site, p: torch.zeros_like(p)),
        ("attention", "head", "stored in bfloat16"),
    ),
    Control(
        "one bias skipped",
        _forgets(lambda edit: edit.site.name.endswith(".bias"), _original),
        ("bias all", "bias of adapted layers"),
    ),
    Control(
        "one saved module skipped",
        _forgets(lambda edit: edit.edit.place == "instead" and edit.site.name.endswith(".weight"), _original),
        ("norm saved", "head saved"),
    ),
    Control("embed_scale forgotten", _unscaled_embedding, ("embedding",)),
    Control("alpha_pattern unwritten", _written_without("alpha_pattern", {}), ("patterns",)),
    Control("rank_pattern unwritten", _written_without("rank_pattern", {}), ("patterns",)),
    Control("rslora unwritten", _written_without("use_rslora", False), ("rslora",)),
    Control("one tensor unwritten", _one_tensor_unwritten, ("attention", "bias all", "norm saved")),
)
