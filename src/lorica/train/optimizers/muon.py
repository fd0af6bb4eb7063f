"""Muon: the momentum of a matrix, made nearly orthogonal.        Jordan et al. 2024, kellerjordan.github.io/posts/muon

    m = momentum m + (1 - momentum) g
    u = NS(g + momentum (m - g))                     nesterov, else NS(m)
    theta -= lr weight_decay theta  +  lr adjust(d_out, d_in) u

NS makes the singular values of a matrix nearly one: X / ||X||, then X = a X + (b X X^T + c (X X^T)^2) X some times, in
bfloat16 as torch.optim.Muon has it.  `adjust` is 0.2 sqrt(max(d_out, d_in)), under which AdamW's learning rate serves
(match_rms_adamw, Liu et al. 2025, arXiv:2502.16982), or the author's sqrt(max(1, d_out / d_in)) (original).

It is for the matrices of hidden layers: vectors, embeddings, heads and what has more dimensions are AdamW's.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from lorica.methods.contract import Role
from lorica.train.numbers import Count, NotNegative, Positive, Share
from lorica.train.optimizers.adamw import AdamW, AdamWConfig
from lorica.train.optimizers.contract import ADAMW_RATE, ByName, Config, Parameters, size
from lorica.train.paging import Held, State

A, B, C = 3.4445, -4.7750, 2.0315
"""Of the quintic: chosen by the author for the steepest slope at zero."""
SMALLEST_NORM = 1e-7


class MuonConfig(Config):
    """betas and eps are those of the AdamW that takes what is no matrix of a hidden layer."""

    name: Literal["muon"] = "muon"
    momentum: Share = 0.95
    nesterov: bool = True
    iterations: Count = 5
    adjust: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    weight_decay: NotNegative = 0.0
    betas: tuple[Share, Share] = (0.9, 0.999)
    eps: Positive = 1e-8

    @property
    def usual_rate(self) -> float | None:
        return ADAMW_RATE if self.adjust == "match_rms_adamw" else None

    def takes(self, shape: tuple[int, ...], role: Role) -> bool:
        return len(shape) == 2 and role not in ("embedding", "table", "vector")

    def elements(self, shape: tuple[int, ...], role: Role) -> int:
        return size(shape) if self.takes(shape, role) else self.beside.elements(shape, role)

    @property
    def beside(self) -> AdamWConfig:
        return AdamWConfig(betas=self.betas, eps=self.eps, weight_decay=self.weight_decay)


class Muon:
    """Two optimisers that step together, each with its own parameters."""

    def __init__(
        self,
        parameters: Parameters,
        config: MuonConfig,
        factors: Mapping[str, float] | None = None,
        roles: Mapping[str, Role] | None = None,
        state: State | None = None,
    ) -> None:
        self.parameters = dict(parameters)
        own = {
            name: parameter
            for name, parameter in self.parameters.items()
            if config.takes(tuple(parameter.shape), (roles or {}).get(name, "matrix"))
        }
        rest = {name: parameter for name, parameter in self.parameters.items() if name not in own}
        self._parts = Held() if state is None else state
        self._matrices = Matrices(own, config, factors, roles, self._parts)
        self._rest = AdamW(rest, config.beside, factors, roles, self._parts)

    def step(self, learning_rate: float) -> None:
        self._matrices.step(learning_rate)
        self._rest.step(learning_rate)

    def state(self) -> Mapping[str, Tensor]:
        return self._parts.tensors(list(self.parameters))

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        own = {key: value for key, value in state.items() if key.rpartition(".")[0] in self._matrices.parameters}
        self._matrices.load_state(own)
        self._rest.load_state({key: value for key, value in state.items() if key not in own})


class Matrices(ByName[MuonConfig]):
    def start(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return {"momentum": torch.zeros_like(parameter)}

    def update(self, names: list[str], learning_rate: float, decays: bool) -> None:
        config = self.config
        for theta, g, m in self.together(names, "momentum"):
            m.lerp_(g, 1 - config.momentum)
            u = orthogonalised(g.lerp(m, config.momentum) if config.nesterov else m, config.iterations)
            theta.mul_(1 - learning_rate * config.weight_decay)
            theta.add_(u, alpha=-learning_rate * _adjusted(config, *theta.shape))


def orthogonalised(matrix: Tensor, iterations: int) -> Tensor:
    """(d_out, d_in), of singular values between about 0.7 and 1.2, in bfloat16; a zero matrix stays zero."""
    X = matrix.bfloat16()
    tall = X.shape[0] > X.shape[1]
    X = X.T if tall else X
    X = X / X.norm().clamp(min=SMALLEST_NORM)
    for _ in range(iterations):
        gram = X @ X.T
        X = torch.addmm(X, torch.addmm(gram, gram, gram, beta=B, alpha=C), X, beta=A)
    return X.T if tall else X


def _adjusted(config: MuonConfig, d_out: int, d_in: int) -> float:
    if config.adjust == "original":
        return max(1.0, d_out / d_in) ** 0.5
    return 0.2 * max(d_out, d_in) ** 0.5
