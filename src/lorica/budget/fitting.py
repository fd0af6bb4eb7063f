"""The best recipes for a device, by quality first and speed second: `lorica plan --fit`.

    seconds a token = flops / rate (1 + overhead / T)  +  bytes that cross over / their rate / tokens

T tokens of a micro-batch; overhead: tokens that take as long as a micro-batch's small calls, and as long again where a
quantised base is made dense.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from math import log
from typing import Any

from lorica.budget.advice import Decision
from lorica.budget.forecast import Forecast
from lorica.budget.knobs import Knob, Settings
from lorica.budget.memory import gigabytes
from lorica.data.order import OVERHEAD

SHOWN = 3
ALIKE, ROOMIER = 0.03, 0.9
NOMINAL_TFLOPS = 10.0
"""To order recipes by speed where no rate is known."""
CROSSING = {"cpu": 1e9, "cuda": 8e9}
"""Bytes a second between a device and where it keeps things: a file, and PCIe 3.0 x16, over which 1 GB takes 125 ms by
the notes of bitsandbytes on paged optimisers."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A recipe with some settings changed, and what that costs.

    knobs: what was turned, exact ones first.  lost: how far each inexact knob was turned, the dearest first.
    """

    settings: Settings
    knobs: tuple[Knob, ...]
    forecast: Forecast
    lost: tuple[int, ...]
    seconds: float
    """A token, for comparison alone where no rate is known."""

    @property
    def words(self) -> str:
        """As the command line takes them: `--set model.quantize=nf4`."""
        return " ".join(f"--set {key}={_value(value)}" for key, value in self.settings.items())

    @property
    def given_up(self) -> tuple[Knob, ...]:
        return tuple(knob for knob in self.knobs if not knob.exact)

    def decisions(self) -> tuple[Decision, ...]:
        """What was turned, as advice tells it."""
        return tuple(
            Decision(topic="memory", settings=self.settings, words=knob.name, reason=knob.words, source=knob.source)
            for knob in self.knobs
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "settings": dict(self.settings),
            "set": self.words,
            "peak_bytes": self.forecast.memory.peak,
            "fits": self.forecast.fits,
            "tokens_per_second": None if self.forecast.tflops is None else 1 / self.seconds,
            "costs": [{"knob": k.name, "exact": k.exact, "words": k.words, "source": k.source} for k in self.knobs],
        }


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The best recipes for a device, and the recipe as it is."""

    asked: Choice
    choices: tuple[Choice, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "device": str(self.asked.forecast.machine),
            "asked": self.asked.to_dict(),
            "choices": [choice.to_dict() for choice in self.choices],
        }

    def __str__(self) -> str:
        asked = self.asked.forecast
        fits = {True: "fits", False: "does not fit", None: "may fit"}[asked.fits]
        head = f"for {asked.machine}: the recipe as it is takes {gigabytes(asked.memory.peak)} and {fits}"
        return "\n".join([head, *(line for n, each in enumerate(self.choices, 1) for line in self._lines(n, each))])

    def _lines(self, number: int, choice: Choice) -> Iterable[str]:
        yield f"{number}. {choice.words or 'the recipe as it is'}"
        away, peak = choice.forecast.elsewhere, gigabytes(choice.forecast.memory.peak)
        beside = f", and elsewhere {away}" if away.total else ""
        rate = "" if choice.forecast.tflops is None else f", {1 / choice.seconds:,.0f} tokens/s at most"
        yield f"   {peak}{beside}; {self.asked.seconds / choice.seconds:.2f} times the recipe's own speed{rate}"
        if not choice.given_up:
            yield "   the same results, but for rounding"
        for knob in choice.knobs:
            yield f"   {knob.words} ({knob.source})"


def best(choices: Iterable[Choice], count: int = SHOWN) -> tuple[Choice, ...]:
    """Of those that fit: of each quality the fastest, where none of a better one is faster; then, as long as there are
    fewer, those that take a tenth less memory than all before them."""
    order = sorted((each for each in choices if each.forecast.fits is not False), key=_order)
    found: list[Choice] = []
    for choice in order:
        if len(found) < count and all(_much_less(choice.seconds, other.seconds) for other in found):
            found.append(choice)
    for choice in order:
        peaks = [other.forecast.memory.peak for other in found]
        if len(found) < count and all(choice.forecast.memory.peak < ROOMIER * peak for peak in peaks):
            found.append(choice)
    return tuple(sorted(found, key=_order))


def _order(choice: Choice) -> tuple[Any, ...]:
    """Speeds within some percent are one: then as few settings as may be."""
    return choice.lost, round(log(choice.seconds) / ALIKE), len(choice.settings), choice.seconds


def _much_less(seconds: float, others: float) -> bool:
    return seconds < (1 - ALIKE) * others


def seconds_a_token(forecast: Forecast, step_tokens: int, tflops: float | None, quantised: bool) -> float:
    """tflops: one rate for all that are compared."""
    work, away = forecast.work, forecast.elsewhere
    rate = (tflops or NOMINAL_TFLOPS) * 1e12
    busy = forecast.flops_per_token / rate * (1 + (OVERHEAD * (2 if quantised else 1)) / work.tokens)
    passes = 2 if work.recomputed == 0 else 3
    crossing = (2 * away.activations + passes * away.weights) / work.tokens + 2 * away.optimizer / step_tokens
    return busy + crossing / CROSSING.get(forecast.machine.kind, CROSSING["cuda"])


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
