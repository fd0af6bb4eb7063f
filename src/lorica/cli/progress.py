"""What a person sees while a run goes on: one live bar on a terminal, plain lines anywhere else.  All on stderr."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from lorica.cli.supervised import Note

if TYPE_CHECKING:
    from lorica.train.records import EvalRecord, StepRecord
    from lorica.train.reporter import Reporter

PLAIN_EVERY = 5.0
"""Seconds between plain lines: a log stays readable and a watcher still sees life."""


@contextmanager
def live(note: Note | None = None) -> Iterator["Reporter"]:
    """A reporter for one run, which tells a supervisor too what it has room for."""
    note = note or Note()
    if not sys.stderr.isatty():
        yield Lines(note)
        return
    with _bar() as progress:
        yield Bar(progress, note)


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[now]}"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        console=Console(stderr=True),
        refresh_per_second=4,
    )


def pace(record: "StepRecord") -> str:
    """`loss 1.234  5,120 tokens/s  1.2 GB`"""
    return f"loss {record.loss:.3f}  {record.tokens_per_second:,.0f} tokens/s  {record.memory_bytes / 1e9:.2f} GB"


@dataclass
class Bar:
    progress: Progress
    note: Note
    task: TaskID | None = None

    def on_plan(self, total_steps: int, done_steps: int, epochs: float) -> None:
        self.task = self.progress.add_task("training", total=total_steps, completed=done_steps, now="")

    def on_step(self, record: "StepRecord") -> None:
        if self.task is not None:
            self.progress.update(self.task, completed=record.step, now=pace(record))

    def on_eval(self, record: "EvalRecord") -> None:
        self.progress.console.print(str(record), highlight=False, markup=False)

    def on_room(self, tokens: int, smaller: int | None) -> None:
        self.note.tell(tokens=tokens, smaller=smaller)

    def on_note(self, text: str) -> None:
        self.progress.console.print(text, highlight=False, markup=False)


@dataclass
class Lines:
    """A line now and then; the first and the last step always."""

    note: Note = field(default_factory=Note)
    total: int = 0
    started: float = field(default_factory=time.monotonic)
    first_step: int = 0
    told: float = float("-inf")

    def on_plan(self, total_steps: int, done_steps: int, epochs: float) -> None:
        self.total, self.first_step, self.started = total_steps, done_steps, time.monotonic()
        again = f", {done_steps} of them done before" if done_steps else ""
        self._print(f"{total_steps} steps, {epochs:g} passes over the data{again}")

    def on_step(self, record: "StepRecord") -> None:
        now = time.monotonic()
        if now - self.told >= PLAIN_EVERY or record.step == self.total:
            self.told = now
            self._print(f"step {record.step}/{self.total}  {pace(record)}  {self._left(record.step, now)} left")

    def on_eval(self, record: "EvalRecord") -> None:
        self._print(str(record))

    def on_room(self, tokens: int, smaller: int | None) -> None:
        self.note.tell(tokens=tokens, smaller=smaller)

    def on_note(self, text: str) -> None:
        self._print(text)

    def _left(self, step: int, now: float) -> str:
        done = max(step - self.first_step, 1)
        return duration((now - self.started) / done * (self.total - step))

    def _print(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """`0:07`, `12:30`, `3:05:00`"""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
