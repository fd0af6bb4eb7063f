"""The learning rate as a function of the step alone.

    w warm-up steps, n steps, p = (step - 1 - w) / (n - 1 - w) once warm, floor f = min_lr_ratio

    step <= w    lr = peak * step / (w + 1)
    linear       lr = peak * (f + (1 - f) * (1 - p))
    cosine       lr = peak * (f + (1 - f) * (1 + cos(pi p)) / 2)        Loshchilov & Hutter 2017, arXiv:1608.03983

The peak is met at step w + 1 and the floor exactly at the last step.
"""

import math

from lorica.train.config import TrainConfig


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """The rate of `step` (from 1) of `total`."""
    warm = warmup_steps(config, total)
    if step <= warm:
        return config.learning_rate * step / (warm + 1)
    progress = (step - 1 - warm) / max(1, total - 1 - warm)
    return config.learning_rate * (config.min_lr_ratio + (1 - config.min_lr_ratio) * _left(config.schedule, progress))


def warmup_steps(config: TrainConfig, total: int) -> int:
    """A share is rounded up to whole steps, and leaves the last one for the peak."""
    if config.warmup >= 1:
        return int(config.warmup)
    return min(math.ceil(config.warmup * total - 1e-9), max(total - 1, 0))


def unmet_peak(config: TrainConfig, total: int) -> str | None:
    """A warning where the run is over before it is warm."""
    warm = warmup_steps(config, total)
    if warm < total:
        return None
    last, peak = learning_rate(config, total, total), config.learning_rate
    return (
        f"warning: train.warmup: {warm} steps in a run of {total}: the learning rate ends at {last:.2g} on its way up "
        f"to {peak:.2g}; lower it (below 1 it is a share of the run), or train longer"
    )


def _left(schedule: str, progress: float) -> float:
    """How much of the way down to the floor is left: 1 at the peak, 0 at the end."""
    if schedule == "constant":
        return 1.0
    return 1.0 - progress if schedule == "linear" else (1.0 + math.cos(math.pi * progress)) / 2
