"""SGD with momentum, as torch.optim.SGD has it.        Sutskever et al. 2013, ICML, section 2

    g += weight_decay theta
    m = momentum m + g
    theta -= lr m                       or  lr (g + momentum m) with nesterov

Without momentum it keeps no state at all.  Its rates have nothing to do with AdamW's: there is no usual one.
"""

from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from lorica.methods.contract import Role
from lorica.train.numbers import NotNegative, Share
from lorica.train.optimizers.contract import ByName, Config, size


class SGDConfig(Config):
    """Weight decay is part of the gradient here, on matrices alone."""

    name: Literal["sgd"] = "sgd"
    momentum: Share = 0.9
    nesterov: bool = False
    weight_decay: NotNegative = 0.0

    @model_validator(mode="after")
    def _consistent(self) -> "SGDConfig":
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov looks ahead along the momentum; give momentum, or leave nesterov out")
        return self

    @property
    def usual_rate(self) -> None:
        return None

    def elements(self, shape: tuple[int, ...], role: Role) -> int:
        return size(shape) if self.momentum else 0


class SGD(ByName[SGDConfig]):
    def start(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return {"momentum": torch.zeros_like(parameter)} if self.config.momentum else {}

    def update(self, names: list[str], learning_rate: float, decays: bool) -> None:
        weight_decay = self.config.weight_decay if decays else 0.0
        for name, theta, g in zip(names, self.tensors(names), self.gradients(names), strict=True):
            slope = g.add(theta, alpha=weight_decay) if weight_decay else g
            theta.sub_(self._direction(name, slope), alpha=learning_rate)

    def _direction(self, name: str, slope: Tensor) -> Tensor:
        momentum = self.config.momentum
        if not momentum:
            return slope
        m = self._parts[name]["momentum"].mul_(momentum).add_(slope)
        return slope.add(m, alpha=momentum) if self.config.nesterov else m
