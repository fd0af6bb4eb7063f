"""Adafactor: the second moment of a matrix as the product of its row and column means.

    r = b r + (1 - b) mean over columns (g^2 + eps)        b = 1 - t^-decay, for step t from 1
    c = b c + (1 - b) mean over rows (g^2 + eps)
    u = g / sqrt(r c^T / mean(r));   u /= max(1, RMS(u) / update_clip)
    theta -= lr (u + weight_decay theta)

Shazeer & Stern 2018, arXiv:1804.04235, algorithm 4; of a vector the whole second moment is kept, algorithm 5.  A tensor
of more than two dimensions is seen as a matrix of its first and all others.  The paper's step sizes are relative, lr
times max(smallest_scale, RMS(theta)): `relative_step`, off here, because a B that starts at zero would learn at the
smallest scale alone.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from lorica.methods.contract import Role
from lorica.train.numbers import NotNegative, Positive
from lorica.train.optimizers.contract import ADAMW_RATE, ByName, Config, counter, size

RELATIVE_RATE = 1e-2
"""The largest relative step of the paper's section 9."""


class AdafactorConfig(Config):
    name: Literal["adafactor"] = "adafactor"
    decay: Positive = 0.8
    eps: Positive = 1e-30
    update_clip: Positive = 1.0
    relative_step: bool = False
    smallest_scale: Positive = 1e-3
    weight_decay: NotNegative = 0.0

    @property
    def usual_rate(self) -> float:
        return RELATIVE_RATE if self.relative_step else ADAMW_RATE

    def elements(self, shape: tuple[int, ...], role: Role) -> int:
        return shape[0] + size(shape[1:]) if len(shape) > 1 else size(shape)


class Adafactor(ByName[AdafactorConfig]):
    def start(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        if parameter.dim() < 2:
            return {"exp_avg_sq": torch.zeros_like(parameter), "step": counter(parameter)}
        matrix = parameter.detach().flatten(1)
        rows, columns = matrix.new_zeros(matrix.shape[0]), matrix.new_zeros(matrix.shape[1])
        return {"row": rows, "column": columns, "step": counter(parameter)}

    def update(self, names: list[str], learning_rate: float, decays: bool) -> None:
        weight_decay = self.config.weight_decay if decays else 0.0
        for name, parameter, gradient in zip(names, self.tensors(names), self.gradients(names), strict=True):
            direction = self._direction(self._parts[name], gradient.flatten(1) if gradient.dim() > 1 else gradient)
            direction.div_((_rms(direction) / self.config.update_clip).clamp_(min=1.0))
            scale = max(self.config.smallest_scale, float(_rms(parameter))) if self.config.relative_step else 1.0
            parameter.mul_(1 - learning_rate * scale * weight_decay)
            parameter.sub_(direction.view_as(parameter), alpha=learning_rate * scale)

    def _direction(self, parts: dict[str, Tensor], g: Tensor) -> Tensor:
        parts["step"].add_(1)
        new = float(parts["step"]) ** -self.config.decay
        squares = g.square().add_(self.config.eps)
        if g.dim() < 2:
            return g * parts["exp_avg_sq"].lerp_(squares, new).rsqrt()
        r = parts["row"].lerp_(squares.mean(1), new)
        c = parts["column"].lerp_(squares.mean(0), new)
        return g * (r / r.mean()).rsqrt_()[:, None] * c.rsqrt()


def _rms(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor) / tensor.numel() ** 0.5
