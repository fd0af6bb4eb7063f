"""How far a run has come: everything of it that a checkpoint must hold beside parameters and optimiser."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from torch import Tensor

from lorica.train.records import EvalRecord, StepRecord


@dataclass
class Progress:
    """step: optimiser steps done; seconds: spent in them and in evaluations; stale: evaluations since the best one."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    loss: float | None = None
    best_loss: float | None = None
    best_step: int = 0
    best_eval: dict[str, Any] | None = None
    stale: int = 0
    stopped: bool = False
    best: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, state: Mapping[str, Any], best: Mapping[str, Tensor]) -> Self:
        return cls(**state, best=dict(best))

    def state(self) -> dict[str, Any]:
        """All but the tensors, as JSON has it."""
        values = {name: value for name, value in vars(self).items() if name != "best"}
        return asdict(Progress(**values), dict_factory=lambda items: {k: v for k, v in items if k != "best"})

    def stepped(self, record: StepRecord) -> None:
        self.step, self.loss = record.step, record.loss
        self.seconds += record.seconds
        self.tokens += record.tokens

    def better(self, loss: float) -> bool:
        return self.best_loss is None or loss < self.best_loss

    def evaluated(self, record: EvalRecord, adapter: dict[str, Tensor] | None, patience: int | None) -> None:
        """`adapter` is its state where the evaluation was the best so far, else None."""
        if adapter is not None:
            self.best_loss, self.best_step = record.eval_loss, record.step
            self.best_eval, self.best = record.to_dict(), adapter
        self.stale = 0 if adapter is not None else self.stale + 1
        self.stopped = patience is not None and self.stale >= patience
