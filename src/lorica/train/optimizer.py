"""AdamW over named parameters, its state kept by their names.

    m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2
    theta -= lr (weight_decay theta  +  (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps))

Decoupled weight decay, on matrices and not on vectors.  Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2.
The update is torch's own fused kernel; torch.optim's classes around it cost 3 s of imports at the first use.
"""

from collections.abc import Iterator, Mapping
from itertools import groupby

import torch
from torch import Tensor, nn

from lorica.errors import CheckpointError
from lorica.train.config import OptimizerConfig

PARTS = ("exp_avg", "exp_avg_sq", "step")


class AdamW:
    """Parameters without a gradient are left as they are."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: OptimizerConfig) -> None:
        self.parameters = dict(parameters)
        self.config = config
        self._first = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self._second = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self._steps = {name: torch.zeros((), dtype=torch.float32, device=p.device) for name, p in parameters.items()}
        self._alike = list(_alike(self.parameters))

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        for decays, group in self._alike:
            names = [name for name in group if self.parameters[name].grad is not None]
            if names:
                self._update(names, learning_rate, self.config.weight_decay if decays else 0.0)

    def state(self) -> dict[str, Tensor]:
        """Tensors by `<parameter>.<part>`, the optimiser's own and not copies."""
        parts = zip(PARTS, (self._first, self._second, self._steps), strict=True)
        return {f"{name}.{part}": tensor for part, tensors in parts for name, tensor in tensors.items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """All of `state()`, nothing more; CheckpointError otherwise."""
        own = self.state()
        wrong = sorted(own.keys() ^ state.keys()) or [key for key in own if own[key].shape != state[key].shape]
        if wrong:
            raise CheckpointError(f"optimizer: {wrong[0]} and {len(wrong) - 1} more differ from this run's parameters")
        for key, tensor in own.items():
            tensor.copy_(state[key])

    def _update(self, names: list[str], learning_rate: float, weight_decay: float) -> None:
        steps = [self._steps[name] for name in names]
        for count in steps:
            count.add_(1)
        torch._fused_adamw_(  # pyright: ignore[reportPrivateImportUsage]
            [self.parameters[name] for name in names],
            [self.parameters[name].grad for name in names],  # type: ignore[misc]
            [self._first[name] for name in names],
            [self._second[name] for name in names],
            [],
            steps,
            lr=learning_rate,
            beta1=self.config.betas[0],
            beta2=self.config.betas[1],
            weight_decay=weight_decay,
            eps=self.config.eps,
            amsgrad=False,
            maximize=False,
        )


def _alike(parameters: Mapping[str, nn.Parameter]) -> Iterator[tuple[bool, list[str]]]:
    """Names in groups that one kernel call takes: of one device and type, and whether they decay."""

    def kind(name: str) -> tuple[bool, str, str]:
        parameter = parameters[name]
        return parameter.dim() > 1, str(parameter.device), str(parameter.dtype)

    for (decays, _, _), names in groupby(sorted(parameters, key=kind), key=kind):
        yield decays, list(names)
