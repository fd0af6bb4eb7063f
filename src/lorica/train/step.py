"""One optimiser step, the same under any split into micro-batches.

    loss = sum over micro-batches of task.loss  /  units of the whole step       (+ the method's extra loss, once)

gradients -> refuse what is not finite -> clip -> update -> the method's own call -> clear
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lorica.data import Example
from lorica.errors import DivergedError, NoRoomError, RunError, how_memory_ran_out, is_out_of_memory
from lorica.methods.contract import Life
from lorica.models import generators
from lorica.tasks import Draw, Task
from lorica.train import memory
from lorica.train.loss_scale import LossScale
from lorica.train.optimizers import Optimizer

NAMED_ROWS = 5


@dataclass(frozen=True, eq=False, kw_only=True)
class Learner:
    """What takes steps: a model whose `optimizer.parameters` learn a task."""

    model: nn.Module
    task: Task
    optimizer: Optimizer
    seed: int
    device: torch.device
    clip: float | None = 1.0
    life: Life | None = None
    scale: LossScale


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A step that was taken: loss per unit, real tokens, units, and the norm before clipping (None: skipped)."""

    loss: float
    tokens: int
    units: int
    grad_norm: float | None


def optimiser_step(
    learner: Learner, micro_batches: Sequence[Sequence[Example]], *, step: int, total: int, learning_rate: float
) -> Taken:
    """Step `step` (from 1) of `total`.  DivergedError, with nothing changed, when loss or gradient is not finite."""
    losses, units = gradients(learner, micro_batches, step)
    made = [p.grad for p in learner.optimizer.parameters.values() if p.grad is not None]
    if not made:
        raise RunError(
            f"step {step}: no trained parameter takes part in the {learner.task.name} loss; check the targets"
        )
    norm = _unscaled_norm(made, learner.scale)
    *parts, grad_norm = torch.stack([*losses, norm.to(losses[0])]).tolist()
    taken = Taken(loss=sum(parts), tokens=_tokens(micro_batches), units=units, grad_norm=grad_norm)
    if not math.isfinite(taken.loss):
        raise _diverged(learner, micro_batches, step, "loss", learning_rate)
    if not math.isfinite(grad_norm):
        return _skipped(learner, micro_batches, step, taken, learning_rate)
    _clip(made, norm, learner.clip)
    learner.optimizer.step(learning_rate)
    learner.scale.succeeded()
    if learner.life is not None:
        learner.life.after_step(step, total)
    clear(learner.optimizer)
    return taken


def gradients(learner: Learner, micro_batches: Sequence[Sequence[Example]], step: int) -> tuple[list[Tensor], int]:
    """Leaves the gradient of the step's loss, times the loss scale, in `.grad`; whatever was there is cleared first.

    Returns each micro-batch's share of the loss (scalars, the extra loss last where there is one) and the units.
    NoRoomError, with no gradient left, where memory runs out.
    """
    before = generators.states()
    try:
        with memory.products_stay_fast():
            return _gradients(learner, micro_batches, step)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        told = how_memory_ran_out(error)
    # outside of the handler: the error's frames hold the activations that there was no room for
    clear(learner.optimizer)
    generators.restore(before)
    raise NoRoomError(f"step {step}: {told}")


def _gradients(learner: Learner, micro_batches: Sequence[Sequence[Example]], step: int) -> tuple[list[Tensor], int]:
    clear(learner.optimizer)
    draw = Draw(learner.seed, step)
    batches = [learner.task.batch(rows, device=learner.device, draw=draw) for rows in micro_batches]
    units = sum(learner.task.units(batch) for batch in batches)
    losses = [_backward(learner.task.loss(learner.model, batch) / units, learner.scale) for batch in batches]
    extra = None if learner.life is None else learner.life.extra_loss()
    if extra is not None:
        losses.append(_backward(extra, learner.scale).to(losses[0]))
    return losses, units


def clear(optimizer: Optimizer) -> None:
    for parameter in optimizer.parameters.values():
        parameter.grad = None


def _backward(loss: Tensor, scale: LossScale) -> Tensor:
    (loss if scale.fixed else loss * scale.scale).backward()
    return loss.detach()


def _unscaled_norm(made: Sequence[Tensor], scale: LossScale) -> Tensor:
    if not scale.fixed:
        _scale(made, 1 / scale.scale)
    return nn.utils.get_total_norm(made)


def _clip(made: Sequence[Tensor], norm: Tensor, clip: float | None) -> None:
    """The factor of torch.nn.utils.clip_grad_norm_, to the bit."""
    if clip is not None and float(factor := clip / (norm + 1e-6)) < 1:
        _scale(made, float(factor))


def _scale(made: Sequence[Tensor], factor: float) -> None:
    torch._foreach_mul_(list(made), factor)  # pyright: ignore[reportPrivateImportUsage]


def _tokens(micro_batches: Sequence[Sequence[Example]]) -> int:
    return sum(len(example) for rows in micro_batches for example in rows)


def _skipped(
    learner: Learner, micro_batches: Sequence[Sequence[Example]], step: int, taken: Taken, learning_rate: float
) -> Taken:
    """Under float16 a gradient that overflows is the scale's fault first; otherwise it is an error."""
    if learner.scale.fixed:
        raise _diverged(learner, micro_batches, step, "gradient", learning_rate)
    learner.scale.overflowed(step)
    clear(learner.optimizer)
    return Taken(loss=taken.loss, tokens=taken.tokens, units=taken.units, grad_norm=None)


def _diverged(
    learner: Learner, micro_batches: Sequence[Sequence[Example]], step: int, what: str, learning_rate: float
) -> DivergedError:
    rows = [example for rows in micro_batches for example in rows]
    guilty = [example for example in rows if not _finite_alone(learner, example, step)]
    clear(learner.optimizer)
    named = ", ".join(example.origin for example in (guilty or rows)[:NAMED_ROWS])
    more = f" and {len(guilty or rows) - NAMED_ROWS} more" if len(guilty or rows) > NAMED_ROWS else ""
    which = f"with {named}{more}" if guilty else f"though it is with each of its rows alone ({named}{more})"
    return DivergedError(
        f"step {step}: the {what} is not finite {which}; look at these rows, or lower learning_rate "
        f"({learning_rate:.3g} at this step); nothing of this step was kept"
    )


def _finite_alone(learner: Learner, example: Example, step: int) -> bool:
    """Loss and gradient of one row, under the step's own dropout."""
    clear(learner.optimizer)
    loss = learner.task.loss(
        learner.model, learner.task.batch([example], device=learner.device, draw=Draw(learner.seed, step))
    )
    loss.backward()
    made = [p.grad for p in learner.optimizer.parameters.values() if p.grad is not None]
    return bool(loss.isfinite()) and all(bool(gradient.isfinite().all()) for gradient in made)
