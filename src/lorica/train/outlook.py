"""What a plan says of how its tensors will learn: the optimiser of each, and the learning rates where they differ."""

from collections.abc import Iterator

from lorica.adapter import Plan
from lorica.budget.cautions import spelled
from lorica.train.config import TrainConfig


def remarks(config: TrainConfig, plan: Plan) -> Iterator[str]:
    """Lines for people.  TargetError where a ratio or a glob of the config finds nothing to apply to."""
    yield from _optimizer(config, plan)
    groups = config.rates.groups(plan)
    if len(groups) > 1:
        peaks = ((group, spelled(group.factor * config.learning_rate)) for group in groups)
        rates = (f"{group.label} {peak} ({len(group.keys)} tensors)" for group, peak in peaks)
        yield f"learning rates at their peak: {', '.join(rates)}"


def _optimizer(config: TrainConfig, plan: Plan) -> Iterator[str]:
    tensors = list(plan.learned.values())
    own = sum(config.optimizer.takes(tensor.shape, tensor.role) for tensor in tensors)
    name = config.optimizer.name
    if own < len(tensors):
        rest = len(tensors) - own
        yield f"optimizer: {name} for {own} matrices of hidden layers, adamw for the other {rest} tensors"
    elif name != "adamw":
        yield f"optimizer: {name}"
