"""The contract of an optimiser: its entry in a recipe, and named parameters whose state goes by their names.

config    frozen; what its state holds of a tensor, and the learning rate to start from where a recipe gives none
step      one update at a learning rate, which each group of parameters has its own factor of; parameters without a
          gradient, and their state, are left as they are
state     everything that a resumed run needs, by `<parameter>.<part>`
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Generic, Protocol, TypeVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from lorica.errors import CheckpointError
from lorica.methods.contract import Role
from lorica.train.paging import Held, State

ADAMW_RATE = 2e-4
Parameters = Mapping[str, nn.Parameter]


class Config(BaseModel):
    """An optimiser's entry of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Any

    @property
    def usual_rate(self) -> float | None:
        """The learning rate of adapters where none is given; None where an optimiser has no usual one."""
        return ADAMW_RATE

    def elements(self, shape: tuple[int, ...], role: Role) -> int:
        """Numbers that are kept for a tensor, its count of steps left out."""
        raise NotImplementedError

    def takes(self, shape: tuple[int, ...], role: Role) -> bool:
        """Whether the update is this optimiser's own, and not the AdamW's that it brings along."""
        return True


C = TypeVar("C", bound=Config)


class Optimizer(Protocol):
    """What the loop sees of any of them."""

    parameters: dict[str, nn.Parameter]

    def step(self, learning_rate: float) -> None: ...

    def state(self) -> Mapping[str, Tensor]: ...

    def load_state(self, state: Mapping[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class Group:
    """Parameters that one call of a kernel takes: of one device and type, one factor, and decayed or not."""

    decays: bool
    factor: float
    names: tuple[str, ...]


class ByName(ABC, Generic[C]):
    """The state of every parameter by its name; weight decay on matrices and not on vectors.

    A subclass says how the state of a parameter starts, and updates a group of parameters that have gradients.
    """

    def __init__(
        self,
        parameters: Parameters,
        config: C,
        factors: Mapping[str, float] | None = None,
        roles: Mapping[str, Role] | None = None,
        state: State | None = None,
    ) -> None:
        self.parameters, self.config = dict(parameters), config
        self._parts = Held() if state is None else state
        for name, parameter in self.parameters.items():
            self._parts.add(name, self.start(parameter))
        self._groups = tuple(_groups(self.parameters, factors or {}, roles or {}))

    @abstractmethod
    def start(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """The parts of its state before the first step."""

    @abstractmethod
    def update(self, names: list[str], learning_rate: float, decays: bool) -> None: ...

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        for group in self._groups:
            names = [name for name in group.names if self.parameters[name].grad is not None]
            for some in self._parts.together(names) if names else ():
                self.update(some, learning_rate * group.factor, group.decays)

    def state(self) -> Mapping[str, Tensor]:
        """Tensors by `<parameter>.<part>`, the optimiser's own, or copies of what is paged out."""
        return self._parts.tensors(list(self.parameters))

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """All of `state()`, nothing more; CheckpointError otherwise."""
        own = self.state()
        wrong = sorted(own.keys() ^ state.keys()) or [key for key in own if own[key].shape != state[key].shape]
        if wrong:
            raise CheckpointError(f"optimizer: {wrong[0]} and {len(wrong) - 1} more differ from this run's parameters")
        for name in self.parameters:
            for part, tensor in self._parts[name].items():
                tensor.copy_(state[f"{name}.{part}"])

    def tensors(self, names: list[str]) -> list[Tensor]:
        return [self.parameters[name] for name in names]

    def gradients(self, names: list[str]) -> list[Tensor]:
        return [gradient for name in names if (gradient := self.parameters[name].grad) is not None]

    def together(self, names: list[str], part: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Each parameter with its gradient and a part of its state."""
        return zip(self.tensors(names), self.gradients(names), self.part(names, part), strict=True)

    def part(self, names: list[str], part: str) -> list[Tensor]:
        return [self._parts[name][part] for name in names]


def counter(parameter: nn.Parameter) -> Tensor:
    """Steps that a parameter has taken."""
    return torch.zeros((), dtype=torch.float32, device=parameter.device)


def size(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


def _groups(parameters: Parameters, factors: Mapping[str, float], roles: Mapping[str, Role]) -> Iterator[Group]:
    def kind(name: str) -> tuple[bool, float, str, str]:
        parameter = parameters[name]
        decays = parameter.dim() > 1 and roles.get(name) != "vector"
        return decays, factors.get(name, 1.0), str(parameter.device), str(parameter.dtype)

    for (decays, factor, _, _), names in groupby(sorted(parameters, key=kind), key=kind):
        yield Group(decays, factor, tuple(names))
