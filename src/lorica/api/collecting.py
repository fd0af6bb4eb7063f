"""statistics: what data-driven starts read of the training data, before anything is attached."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from lorica.adapter.attach import frozen, require_free
from lorica.adapter.plan import Methods, plan
from lorica.api.lessons import Rows, from_anything
from lorica.api.tasked import TaskLike, task_for, with_head
from lorica.data import Dataset, Example
from lorica.methods.statistic import Statistic
from lorica.models.watching import watched
from lorica.tasks import Task
from lorica.train.run_folder import start_of

AT_ONCE = 8192
"""Tokens of a pass that the bare base makes over rows it is compared with."""


def statistics(
    model: nn.Module, method: Methods, rows: Rows | Dataset | str, *, task: TaskLike | None = None
) -> dict[str, Tensor]:
    """What the starts of `method` need of the training data, for `lorica.attach(model, method, statistics=...)`.

    rows: those of the training, as `lorica.fit` takes them; as many as the start asks for are read, evenly spread.
    Empty where no start needs any.  The same rows give the same tensors (on the CPU), and the model is
    left as it was.
    """
    require_free(model)
    planned, chosen = plan(model, with_head(model, method)), task_for(model, task)
    needed = [seen for each in planned.methods if (seen := each.statistic(planned.base)) is not None]
    data = from_anything(model, rows, None, chosen) if needed else None
    if data is not None:
        data = chosen.compared(model, data, micro_batch_tokens=AT_ONCE)
    found: dict[str, Tensor] = {}
    for statistic in needed:
        assert data is not None
        _collect(model, statistic, _spread(data, statistic.rows), chosen)
        found |= {key: factor.cpu() for key, factor in statistic.factors().items()}
    return found


def for_run(
    model: nn.Module, method: Methods, rows: Dataset, task: Task, folder: Path, resume: bool
) -> dict[str, Tensor]:
    """What the starts of a run begin from: those of its newest checkpoint where it is resumed, otherwise new ones."""
    kept = start_of(folder) if resume else None
    return statistics(model, method, rows, task=task) if kept is None else dict(kept)


def _spread(data: Dataset, most: int) -> list[Example]:
    count = min(most, len(data))
    return [data[index * len(data) // count] for index in range(count)]


def _collect(model: nn.Module, statistic: Statistic, rows: Sequence[Example], task: Task) -> None:
    """A row at a time, which no family pads."""
    device = next(model.parameters()).device
    with _still(model), torch.set_grad_enabled(statistic.gradients):
        for sites in statistic.passes():
            with watched(model, sites, statistic.see, gradients=statistic.gradients):
                for row in rows:
                    if statistic.done:
                        break
                    loss = task.loss(model, task.batch([row], device=device))
                    if statistic.gradients:
                        loss.backward()


@contextmanager
def _still(model: nn.Module) -> Iterator[None]:
    """In evaluation, no parameter asking for a gradient; all as it was afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    thaw = frozen(model)
    try:
        yield
    finally:
        thaw()
        for module, mode in modes:
            module.training = mode
