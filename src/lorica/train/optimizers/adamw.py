"""AdamW.        Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2

    m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2
    theta -= lr (weight_decay theta  +  (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps))

The update is torch's own fused kernel; torch.optim's classes around it cost 3 s of imports at the first use.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from lorica.methods.contract import Role
from lorica.train.numbers import NotNegative, Positive, Share
from lorica.train.optimizers.contract import ByName, Config, counter, size


class AdamWConfig(Config):
    """Decoupled weight decay, on matrices alone."""

    name: Literal["adamw"] = "adamw"
    betas: tuple[Share, Share] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NotNegative = 0.0

    def elements(self, shape: tuple[int, ...], role: Role) -> int:
        return 2 * size(shape)


class AdamW(ByName[AdamWConfig]):
    def start(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        moments = {part: torch.zeros_like(parameter) for part in ("exp_avg", "exp_avg_sq")}
        return {**moments, "step": counter(parameter)}

    def update(self, names: list[str], learning_rate: float, decays: bool) -> None:
        steps = self.part(names, "step")
        torch._foreach_add_(steps, 1)  # pyright: ignore[reportPrivateImportUsage]
        torch._fused_adamw_(  # pyright: ignore[reportPrivateImportUsage]
            self.tensors(names),
            self.gradients(names),
            self.part(names, "exp_avg"),
            self.part(names, "exp_avg_sq"),
            [],
            steps,
            lr=learning_rate,
            beta1=self.config.betas[0],
            beta2=self.config.betas[1],
            weight_decay=self.config.weight_decay if decays else 0.0,
            eps=self.config.eps,
            amsgrad=False,
            maximize=False,
        )
