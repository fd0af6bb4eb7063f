"""Metrics in Prometheus' text format, in a registry of this server's own.

Labels are routes and names that are served, never what a client wrote, so that their number stays small.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
BETWEEN = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 5)
LOADS = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60)
BASE, BLEND = "base", "blend"
"""Labels of what is no adapter's name alone."""
Stats = Callable[[], Any]


class Metrics:
    """One server's counts.  `stats` gives the engine's own, as a dataclass of numbers; None without an engine."""

    def __init__(self, stats: Stats | None = None) -> None:
        self.registry = CollectorRegistry()
        if stats is not None:
            self.registry.register(OfEngine(stats))
        self.requests = self._counter("requests", "Requests answered", "route", "status", "adapter")
        self.read = self._counter("prompt_tokens", "Tokens of prompts", "adapter")
        self.reused = self._counter("reused_tokens", "Tokens of prompts whose prefix was held", "adapter")
        self.written = self._counter("written_tokens", "Tokens written", "adapter")
        self.loads = self._counter("adapter_loads", "Adapters loaded, replaced and unloaded", "what", "result")
        self.first = self._histogram("time_to_first_token_seconds", "From request to token", "adapter", FIRST)
        self.between = self._histogram("inter_token_seconds", "From token to token", "adapter", BETWEEN)
        self.load_time = self._histogram("adapter_load_seconds", "Of one load", "what", LOADS)

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def answered(self, route: str, status: int, adapter: str) -> None:
        self.requests.labels(route, str(status), adapter).inc()

    def watch(self, adapter: str) -> "Watch":
        return Watch(self.first.labels(adapter), self.between.labels(adapter))

    def counted(self, adapter: str, *, prompt: int, reused: int, written: int) -> None:
        self.read.labels(adapter).inc(prompt)
        self.reused.labels(adapter).inc(reused)
        self.written.labels(adapter).inc(written)

    def loaded(self, what: str, result: str, seconds: float) -> None:
        self.loads.labels(what, result).inc()
        self.load_time.labels(what).observe(seconds)

    def _counter(self, name: str, told: str, *labels: str) -> Counter:
        return Counter(f"lorica_{name}", told, labels, registry=self.registry)

    def _histogram(self, name: str, told: str, label: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"lorica_{name}", told, [label], buckets=buckets, registry=self.registry)


@dataclass(frozen=True)
class Watch:
    """The histograms of one adapter, in seconds."""

    first: Histogram
    between: Histogram


@dataclass(frozen=True)
class OfEngine:
    """The engine's own numbers, read when they are asked for."""

    stats: Stats

    def describe(self) -> Iterator[Metric]:
        """None beforehand: a registry need not ask the engine to learn the names."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        told = numbers_of(self.stats())
        for name, value in told.items():
            if not isinstance(value, Mapping):
                yield _one(name, value)
            elif name == "by_adapter":
                yield from _by_adapter(value)
            else:
                yield _by_label(f"lorica_engine_{name}", "what", value)


def numbers_of(value: Any) -> Any:
    """A dataclass of numbers, and of mappings of them, as plain dicts; what is neither is left out."""
    if is_dataclass(value):
        value = {each.name: getattr(value, each.name) for each in fields(value)}
    if isinstance(value, Mapping):
        inside = {str(name): numbers_of(each) for name, each in value.items()}
        return {name: each for name, each in inside.items() if each is not None}
    return value if isinstance(value, int | float) else None


def _one(name: str, value: float) -> Metric:
    return GaugeMetricFamily(f"lorica_engine_{name}", f"The engine's {name}", value=value)


def _by_label(name: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, name.removeprefix("lorica_").replace("_", " "), labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _by_adapter(told: Mapping[str, Mapping[str, float]]) -> Iterator[Metric]:
    """One family a number; every blend counts under one label."""
    for number in sorted({name for each in told.values() for name in each}):
        sums: dict[str, float] = {}
        for name, each in told.items():
            label = BLEND if "+" in name else name or BASE
            sums[label] = sums.get(label, 0) + each.get(number, 0)
        yield _by_label(f"lorica_adapter_{number}", "adapter", sums)
