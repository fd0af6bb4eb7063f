"""What a plan says of how its tensors will learn: the optimiser of each, and the learning rates where they differ."""

import math
from collections.abc import Iterator

from lorica.adapter import Plan
from lorica.budget.cautions import spelled
from lorica.train.config import TrainConfig
from lorica.train.schedule import unmet_peak


def remarks(config: TrainConfig, plan: Plan, rows: int | None = None) -> Iterator[str]:
    """Lines for people.  TargetError where a ratio or a glob of the config finds nothing to apply to.

    rows: of the data, about; None: not known.
    """
    yield from _optimizer(config, plan)
    groups = config.rates.groups(plan)
    if len(groups) > 1:
        peaks = ((group, spelled(group.factor * config.learning_rate)) for group in groups)
        rates = (f"{group.label} {peak} ({len(group.keys)} tensors)" for group, peak in peaks)
        yield f"learning rates at their peak: {', '.join(rates)}"
    steps = _steps(config, rows)
    if steps and (told := unmet_peak(config, steps)):
        yield told


def _steps(config: TrainConfig, rows: int | None) -> int | None:
    if config.steps is not None or rows is None or config.rows_per_step is None:
        return config.steps
    return math.ceil((config.epochs or 0) * math.ceil(rows / config.rows_per_step))


def _optimizer(config: TrainConfig, plan: Plan) -> Iterator[str]:
    tensors = list(plan.learned.values())
    own = sum(config.optimizer.takes(tensor.shape, tensor.role) for tensor in tensors)
    name = config.optimizer.name
    if own < len(tensors):
        rest = len(tensors) - own
        yield f"optimizer: {name} for {own} matrices of hidden layers, adamw for the other {rest} tensors"
    elif name != "adamw":
        yield f"optimizer: {name}"
