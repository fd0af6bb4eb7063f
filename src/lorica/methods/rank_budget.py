"""Which singular values AdaLoRA keeps: every one is judged, and a shrinking budget is shared by all sites.

    I  = | w dloss/dw |                         of every entry w of P, L and Q
    I' = b1 I' + (1 - b1) I                     sensitivity, smoothed
    U  = b2 U + (1 - b2) | I - I' |             how uncertain it is
    S_i = s(L_i) + mean_j s(P_ji) + mean_j s(Q_ij)        of triplet i, s = I' U
    b(t) = end + (start - end) (1 - (t - t_i) / (T - t_i - t_f))^3        the budget at step t of T

Zhang et al. 2023, arXiv:2303.10512, equations 8 to 12, in the order of the authors' code: w after the optimiser's step,
its gradient from before it.  Equation 12 as printed subtracts t_f in the numerator too, so it starts above `start` and
never comes down to `end`; the authors' code has what stands here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from lorica.errors import CheckpointError, RecipeError, RunError
from lorica.methods.contract import Life

PARTS = ("P", "L", "Q")


class Triplets(Protocol):
    """P (d_out, r), L (r, 1), Q (r, d_in): column i of P, L_i and row i of Q are a triplet."""

    P: nn.Parameter
    L: nn.Parameter
    Q: nn.Parameter


@dataclass(frozen=True)
class Schedule:
    """start, end: singular values kept before and after; first: the last step with all of them; last: the step from
    which there are no more than `end`; every: steps between two choices."""

    start: int
    end: int
    first: int
    last: int
    every: int = 1

    def budget(self, step: int) -> int:
        if step <= self.first:
            return self.start
        if step >= self.last:
            return self.end
        left = 1 - (step - self.first) / (self.last - self.first)
        return int(self.end + (self.start - self.end) * left**3)

    def chooses(self, step: int) -> bool:
        """From `last` on at every step, since the optimiser moves away from zero what was set to it."""
        return step >= self.last or (step > self.first and step % self.every == 0)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """rank: the average that is left at a site; tinit, tfinal: below 1 a share of the run, else steps."""

    rank: int
    tinit: float
    tfinal: float
    every: int
    beta1: float
    beta2: float
    orthogonality: float

    def schedule(self, total: int, start: int, sites: int) -> Schedule:
        """RecipeError where the run is too short for its own phases."""
        first, final = steps_of(self.tinit, total), steps_of(self.tfinal, total)
        if first + final >= total:
            raise RecipeError(
                f"adalora: tinit ({first} steps) and tfinal ({final}) leave none of the run's {total} steps to choose "
                "ranks in; train longer, lower them, or give shares of the run such as tinit=0.1, tfinal=0.4"
            )
        return Schedule(start, min(start, self.rank * sites), first, total - final, self.every)


def steps_of(value: float, total: int) -> int:
    return round(value * total) if value < 1 else int(value)


class Allocation(Life):
    """The running state of AdaLoRA on the modules of its sites."""

    def __init__(self, settings: Settings, modules: Mapping[str, Triplets]) -> None:
        self.settings, self.modules = settings, modules
        self.parameters = {f"{site}.{part}": getattr(m, part) for site, m in modules.items() for part in PARTS}
        self.sensitivity = {name: torch.zeros_like(p).detach() for name, p in self.parameters.items()}
        self.uncertainty = {name: torch.zeros_like(p).detach() for name, p in self.parameters.items()}
        self._penalised = False

    def begin(self, total: int) -> None:
        self.schedule(total)

    def schedule(self, total: int) -> Schedule:
        ranks = [module.L.shape[0] for module in self.modules.values()]
        return self.settings.schedule(total, sum(ranks), len(ranks))

    def extra_loss(self) -> Tensor | None:
        """gamma times the mean of ||P^T P - I||_F and ||Q Q^T - I||_F over all matrices, the norm not squared: as both
        the authors' code and PEFT have it, where the paper sums squares."""
        self._penalised = True
        if not self.settings.orthogonality:
            return None
        residuals = torch.stack(list(self.residuals()))
        return self.settings.orthogonality * residuals.mean()

    def residuals(self) -> Iterator[Tensor]:
        """How far the vectors of each matrix are from orthonormal."""
        for module in self.modules.values():
            for rows in (module.P.T, module.Q):
                if len(rows):
                    yield torch.linalg.matrix_norm(rows @ rows.T - torch.eye(len(rows)).to(rows))

    @torch.no_grad()
    def after_step(self, step: int, total: int) -> None:
        """RunError where the loss or the gradients of this step did not come by here."""
        schedule = self.schedule(total)
        if not self._penalised:
            raise RunError(
                f"adalora, step {step}: its extra loss was not asked for; add attached.life.extra_loss() to the loss "
                "once an optimiser step"
            )
        self._penalised = False
        if step <= schedule.last:
            self._judge(step)
        if schedule.chooses(step):
            self._keep(schedule.budget(step))

    def scores(self) -> Tensor:
        """S of every triplet, the sites one after another."""
        return torch.cat([self._score(site) for site in self.modules])

    def _score(self, site: str) -> Tensor:
        P, L, Q = (self.sensitivity[f"{site}.{part}"] * self.uncertainty[f"{site}.{part}"] for part in PARTS)
        return L[:, 0] + P.mean(0) + Q.mean(1)

    def _judge(self, step: int) -> None:
        if all(parameter.grad is None for parameter in self.parameters.values()):
            raise RunError(
                f"adalora, step {step}: no gradients to judge by; call attached.life.after_step(step, total) after "
                "optimizer.step() and before zero_grad()"
            )
        for name, parameter in self.parameters.items():
            gradient = 0 if parameter.grad is None else parameter.grad
            found = (parameter * gradient).abs_()
            mean = self.sensitivity[name].lerp_(found, 1 - self.settings.beta1)
            self.uncertainty[name].lerp_((found - mean).abs_(), 1 - self.settings.beta2)

    def _keep(self, budget: int) -> None:
        """All but the `budget` best singular values become zero, of equals the first is kept.  Their vectors stay, so
        that one that proves worth it comes back."""
        order = self.scores().argsort(descending=True, stable=True)
        dropped = torch.zeros_like(order, dtype=torch.bool)
        dropped[order[budget:]] = True
        values = [module.L for module in self.modules.values()]
        for L, drop in zip(values, dropped.split([len(L) for L in values]), strict=True):
            L.masked_fill_(drop[:, None].to(L.device), 0.0)

    def state_dict(self) -> dict[str, Tensor]:
        return {f"{kind}.{name}": value for kind in KINDS for name, value in getattr(self, kind).items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        own = self.state_dict()
        if own.keys() != state.keys():
            odd = sorted(own.keys() ^ state.keys())
            raise CheckpointError(
                f"adalora: the checkpoint's scores are of other sites: {odd[0]} and {len(odd) - 1} more"
            )
        for name, value in state.items():
            own[name].copy_(value)


KINDS = ("sensitivity", "uncertainty")
