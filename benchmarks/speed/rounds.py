"""Sides in turn: each round takes every side once, so that a slow minute of the machine falls on all alike.

load each -> warm-up -> forget what the highest memory was -> rounds of turns
turn = one step that is not timed, which takes back the memory the side gave away, and `timed` steps that are
"""

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.speed.process import Worker

Told = Callable[[str], None]
FACTS = ("rows", "cells", "gflops", "held_gflops", "shape", "by")
"""What a step of some sides says beside its seconds, loss and tokens."""


@dataclass(frozen=True, kw_only=True)
class Length:
    """How long a topic is measured: steps of warm-up, rounds, and timed steps of a turn."""

    warmup: int = 2
    rounds: int = 5
    timed: int = 2


@dataclass
class Side:
    """What is known of a side: the turns' timed steps, and the losses of all its steps in order."""

    ready: dict[str, Any]
    turns: list[list[dict[str, Any]]] = field(default_factory=list)
    losses: list[float | None] = field(default_factory=list)
    peak_bytes: int = 0

    def took(self, answer: Mapping[str, Any], untimed: int) -> None:
        self.losses += [step["loss"] for step in answer["steps"]]
        self.turns += [answer["steps"][untimed:]] if len(answer["steps"]) > untimed else []
        self.peak_bytes = max(self.peak_bytes, answer.get("device_bytes") or answer["peak_bytes"])

    def found(self) -> dict[str, Any]:
        steps = [step for turn in self.turns for step in turn]
        seconds = [step["seconds"] for step in steps]
        rates = [sum(s["tokens"] for s in turn) / sum(s["seconds"] for s in turn) for turn in self.turns]
        whole = sum(s["tokens"] for s in steps) / sum(seconds)
        extra = {name: [step[name] for step in steps] for name in FACTS if name in steps[0]}
        return {
            "step_seconds": spread(seconds),
            "processor_seconds": spread([step["processor"] for step in steps]),
            "tokens_per_second": {**spread(rates), "whole": round(whole, 1)},
            "peak_bytes": self.peak_bytes,
            "ready": self.ready,
            "seconds": [round(value, 4) for value in seconds],
            "tokens": [step["tokens"] for step in steps],
            "losses": self.losses,
            **extra,
        }


def spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 4),
        "low": round(min(values), 4),
        "high": round(max(values), 4),
    }


def measured(
    orders: Mapping[str, Mapping[str, Any]], length: Length, logs: Path, told: Told
) -> dict[str, dict[str, Any]]:
    """The findings of each side by its name."""
    with _workers(orders, logs, told) as workers:
        sides = {name: Side(worker.ready) for name, worker in workers.items()}
        for name, worker in workers.items():
            answer = worker.steps(length.warmup)
            sides[name].took(answer, untimed=length.warmup)
            sides[name].peak_bytes = 0
            told(f"{name}: warm, {answer['steps'][-1]['seconds']:.2f} s the last step")
        for number in range(length.rounds):
            _round(workers, sides, length, number, told)
        return {name: side.found() for name, side in sides.items()}


def _round(workers: Mapping[str, Worker], sides: Mapping[str, Side], length: Length, number: int, told: Told) -> None:
    """Each round begins with another side."""
    names = list(workers)
    for name in names[number % len(names) :] + names[: number % len(names)]:
        answer = workers[name].steps(1 + length.timed, forget_peak=number == 0)
        sides[name].took(answer, untimed=1)
        seconds = ", ".join(f"{step['seconds']:.2f}" for step in answer["steps"][1:])
        told(f"round {number + 1} of {length.rounds}, {name}: {seconds} s")


@contextmanager
def _workers(orders: Mapping[str, Mapping[str, Any]], logs: Path, told: Told) -> Iterator[dict[str, Worker]]:
    workers: dict[str, Worker] = {}
    try:
        for name, order in orders.items():
            workers[name] = Worker(name, order, logs / f"{name}.log")
        yield workers
    finally:
        for worker in workers.values():
            worker.close()
