"""Who is told what a run does while it does it: a progress bar, TensorBoard, nobody."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from lorica.train.records import EvalRecord, StepRecord


class Reporter(Protocol):
    def on_plan(self, total_steps: int, done_steps: int, epochs: float) -> None:
        """Before the first step: how many there are, how many an earlier run has done, passes over the data."""
        ...

    def on_step(self, record: StepRecord) -> None: ...

    def on_eval(self, record: EvalRecord) -> None: ...

    def on_room(self, tokens: int, smaller: int | None) -> None:
        """Tokens computed at a time from here on, and how many there would be next; None: nothing is smaller."""
        ...

    def on_note(self, text: str) -> None:
        """One line that a person should see."""
        ...


class Quiet:
    """Tells nobody; a base for reporters that want some of the calls."""

    def on_plan(self, total_steps: int, done_steps: int, epochs: float) -> None:
        return None

    def on_step(self, record: StepRecord) -> None:
        return None

    def on_eval(self, record: EvalRecord) -> None:
        return None

    def on_room(self, tokens: int, smaller: int | None) -> None:
        return None

    def on_note(self, text: str) -> None:
        return None


@dataclass(frozen=True)
class Several:
    """Tells each in turn."""

    reporters: Sequence[Reporter]

    def on_plan(self, total_steps: int, done_steps: int, epochs: float) -> None:
        for reporter in self.reporters:
            reporter.on_plan(total_steps, done_steps, epochs)

    def on_step(self, record: StepRecord) -> None:
        for reporter in self.reporters:
            reporter.on_step(record)

    def on_eval(self, record: EvalRecord) -> None:
        for reporter in self.reporters:
            reporter.on_eval(record)

    def on_room(self, tokens: int, smaller: int | None) -> None:
        for reporter in self.reporters:
            reporter.on_room(tokens, smaller)

    def on_note(self, text: str) -> None:
        for reporter in self.reporters:
            reporter.on_note(text)
