"""Lion: the sign of a momentum, every element moved by the same amount.        Chen et al. 2023, arXiv:2302.06675

    c = b1 m + (1 - b1) g
    theta -= lr (sign(c) + weight_decay theta)        algorithm 2
    m = b2 m + (1 - b2) g

One moment where AdamW keeps two.  Its steps are longer, so the authors take a learning rate 3 to 10 times smaller than
AdamW's, and a weight decay as many times larger.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from lorica.methods.contract import Role
from lorica.train.numbers import NotNegative, Share
from lorica.train.optimizers.contract import ADAMW_RATE, ByName, Config, size

SMALLER = 5
"""Between the authors' 3 and 10."""


class LionConfig(Config):
    name: Literal["lion"] = "lion"
    betas: tuple[Share, Share] = (0.9, 0.99)
    weight_decay: NotNegative = 0.0

    @property
    def usual_rate(self) -> float:
        return ADAMW_RATE / SMALLER

    def elements(self, shape: tuple[int, ...], role: Role) -> int:
        return size(shape)


class Lion(ByName[LionConfig]):
    def start(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return {"exp_avg": torch.zeros_like(parameter)}

    def update(self, names: list[str], learning_rate: float, decays: bool) -> None:
        b1, b2 = self.config.betas
        weight_decay = self.config.weight_decay if decays else 0.0
        for theta, g, m in self.together(names, "exp_avg"):
            theta.mul_(1 - learning_rate * weight_decay)
            theta.sub_(m.lerp(g, 1 - b1).sign_(), alpha=learning_rate)
            m.lerp_(g, 1 - b2)
