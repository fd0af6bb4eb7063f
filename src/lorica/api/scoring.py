"""evaluate: an adapter, or its bare base, scored on rows."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lorica.adapter import Attached
from lorica.api.lessons import Rows, from_anything
from lorica.api.recorded import data_config, loaded_with
from lorica.api.tasked import TaskLike, task_for
from lorica.data import Dataset
from lorica.errors import RequestError
from lorica.models import load_base
from lorica.train import Quiet, Reporter, TrainConfig
from lorica.train.room import Room, compared, evaluated


@dataclass(frozen=True)
class Score:
    """`metrics` of the task: `loss` and what belongs to it.  `dropped`: of how many rows it says nothing, and why."""

    metrics: Mapping[str, Any]
    dropped: int = 0
    why_dropped: str = ""

    def to_dict(self) -> dict[str, Any]:
        dropped = {"dropped": self.dropped, "why_dropped": self.why_dropped} if self.dropped else {}
        return {**self.metrics, **dropped}

    def __str__(self) -> str:
        told = {name: _number(value) for name, value in self.metrics.items()}
        if self.dropped:
            told["dropped"] = f"{self.dropped:,}: {self.why_dropped}"
        width = max(map(len, told))
        return "\n".join(f"{name:<{width}}  {value}" for name, value in told.items())


def _number(value: Any) -> str:
    return f"{value:,.4f}" if isinstance(value, float) else f"{value:,}"


def evaluate(
    adapter: str | Path | Attached | None,
    data: str | Path | Rows | Dataset,
    *,
    model: str | nn.Module | None = None,
    base: bool = False,
    dtype: str | None = None,
    task: TaskLike | None = None,
    untrained: bool = False,
    other_base: bool = False,
    reporter: Reporter | None = None,
) -> Score:
    """Loss and metrics on `data`: a file or other source, rows in memory, or a data set.

    adapter   a folder, a hub id, or one in place; None scores `model` itself
    base      scores the bare base of the adapter
    untrained, other_base   as in `load`: an adapter without effect or not finished, or for another base, is accepted
    task      None: the one the adapter was trained for
    reporter  is told where memory runs out and rows are scored in smaller micro-batches
    """
    accepted = {"untrained": untrained, "other_base": other_base}
    holder, manifest, attached = _holder(adapter, model, base, dtype, accepted)
    source = str(data) if isinstance(data, Path) else data
    chosen = task_for(holder, task, manifest)
    rows = from_anything(holder, source, data_config(manifest, source if isinstance(source, str) else "rows"), chosen)
    room = Room.of(TrainConfig(), rows, reporter=reporter or Quiet())
    if chosen.compares:
        with nullcontext(holder) if attached is None else attached.off() as bare:
            rows = compared(chosen, bare, rows, room)
    return Score(evaluated(chosen, holder, rows, room, "evaluation"), len(rows.dropped), rows.why_dropped)


def _holder(
    adapter: str | Path | Attached | None,
    model: str | nn.Module | None,
    base: bool,
    dtype: str | None,
    accepted: Mapping[str, bool],
) -> tuple[nn.Module, Mapping[str, Any], Attached | None]:
    if isinstance(adapter, Attached):
        if base or model is not None:
            raise RequestError("evaluate: an adapter in place is scored on its own model; detach it to score the base")
        return adapter.eval().model, {}, adapter
    if adapter is not None:
        return loaded_with(adapter, model, base=base, dtype=dtype, **accepted)
    if model is None:
        raise RequestError("eval: name an adapter, or a base with --model")
    return (load_base(model, dtype=dtype) if isinstance(model, str) else model).eval(), {}, None
