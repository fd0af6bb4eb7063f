"""What a run writes down: a line a step, a line an evaluation, and its outcome."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Status = Literal["finished", "stopped early", "cut short", "interrupted"]


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One optimiser step.

    step            from 1
    epoch           passes over the data done after this step
    loss            per unit of the whole step, before the update
    tokens          real tokens read; label_tokens: units of the task learned from
    learning_rates  of each group of parameters, where not all learn at `learning_rate`
    grad_norm       before clipping; None where float16 scaling skipped the step
    seconds         of this step; tokens_per_second: of real tokens
    memory_bytes    resident memory of the process, or the device's peak so far
    pages           of the optimiser's state, `in` and `out` since the process began, where it is paged
    """

    step: int
    epoch: float
    loss: float
    tokens: int
    label_tokens: int
    learning_rate: float
    grad_norm: float | None
    seconds: float
    tokens_per_second: float
    memory_bytes: int
    learning_rates: Mapping[str, float] | None = None
    pages: Mapping[str, int] | None = None

    def to_dict(self) -> dict[str, Any]:
        absent = {name for name in ("learning_rates", "pages") if not getattr(self, name)}
        return {name: value for name, value in asdict(self).items() if name not in absent}

    def __str__(self) -> str:
        return f"step {self.step}: loss {self.loss:.4f}, {self.tokens_per_second:,.0f} tokens/s"


@dataclass(frozen=True, kw_only=True)
class EvalRecord:
    """One evaluation; `metrics` are the task's beside its loss, `best` says whether none was better before."""

    step: int
    epoch: float
    eval_loss: float
    metrics: Mapping[str, float]
    best: bool

    def to_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "epoch": self.epoch,
            "eval_loss": self.eval_loss,
            **self.metrics,
            "best": self.best,
        }

    def __str__(self) -> str:
        return f"step {self.step}: eval_loss {self.eval_loss:.4f}{' (best)' if self.best else ''}"


@dataclass(frozen=True, kw_only=True)
class Run:
    """The outcome of `fit`.

    status      stopped early: by patience; cut short: an adapter was made of a run that had steps left (`finish`)
    adapter     folder of the kept adapter: the best evaluated one, else the last; None without a run folder or when
                interrupted
    steps       optimiser steps done, of `total_steps`; best_step: the one whose adapter is kept
    loss        of the last step; eval: the record of the kept adapter's evaluation
    seconds     over all resumes; history: the lines of metrics.jsonl
    pages       of the optimiser's state, `in` and `out` of this process; None where it is not paged
    """

    status: Status
    adapter: str | None
    steps: int
    total_steps: int
    best_step: int
    loss: float | None
    eval: Mapping[str, Any] | None
    seconds: float
    tokens_per_second: float
    peak_bytes: int
    skipped_steps: int = 0
    pages: Mapping[str, int] | None = None
    history: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)

    @property
    def exit_status(self) -> int:
        return 130 if self.status == "interrupted" else 0

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "history"}

    def __str__(self) -> str:
        loss = "" if self.loss is None else f", loss {self.loss:.4f}"
        evaluated = "" if self.eval is None else f", eval_loss {self.eval['eval_loss']:.4f} at step {self.best_step}"
        paged = "" if self.pages is None else ", {in:,} pages of state in and {out:,} out".format(**self.pages)
        pace = f"{self.seconds:.1f} s, {self.tokens_per_second:,.0f} tokens/s"
        return f"{self.status} after {self.steps} of {self.total_steps} steps{loss}{evaluated}, {pace}{paged}"
