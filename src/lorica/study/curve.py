"""The loss curve as inline SVG: every step faint, their running mean strong, evaluations as dots on a line.

Colours come from the page's style, so that the drawing follows its light and its dark look.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, TypeGuard

Point = tuple[float, float]

WIDTH, HEIGHT = 760, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 14, 34
TICKS = 5
MOST_POINTS = 600
"""More than the drawing has pixels to show."""


@dataclass(frozen=True)
class Frame:
    """Data coordinates to those of the drawing."""

    x: tuple[float, float]
    y: tuple[float, float]

    @classmethod
    def of(cls, points: Sequence[Point]) -> "Frame":
        xs, ys = zip(*points, strict=True)
        low, high = min(ys), max(ys)
        margin = 0.05 * (high - low) or 0.5
        return cls((min(xs), max(*xs, min(xs) + 1)), (low - margin, high + margin))

    def place(self, point: Point) -> Point:
        across = (point[0] - self.x[0]) / (self.x[1] - self.x[0])
        up = (point[1] - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def curve(history: Iterable[Mapping[str, Any]]) -> str:
    """The drawing of a run's lines (`metrics.jsonl`); a sentence where there is nothing to draw."""
    records = list(history)
    trained, evaluated = _points(records, "loss"), _points(records, "eval_loss")
    if not trained and not evaluated:
        return "<p>No step was recorded.</p>"
    frame = Frame.of([*trained, *evaluated])
    parts = [
        *_axes(frame),
        _line(frame, _thinned(trained), "step"),
        _line(frame, _thinned(running_mean(trained)), "train"),
        _line(frame, evaluated, "eval"),
        *(_dot(frame, point) for point in evaluated),
    ]
    label = escape(_spoken(trained, evaluated), quote=True)
    drawing = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    return drawing + _legend(evaluated)


def _legend(evaluated: Sequence[Point]) -> str:
    held_out = '<span class="swatch eval"></span>held-out loss' if evaluated else ""
    trained = '<span class="swatch train"></span>training loss (running mean over faint steps)'
    return f'<p class="legend">{trained}{held_out}</p>'


def _points(records: Sequence[Mapping[str, Any]], key: str) -> list[Point]:
    found = ((record.get("step"), record.get(key)) for record in records)
    return [(float(step), float(value)) for step, value in found if _finite(step) and _finite(value)]


def _finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def running_mean(points: Sequence[Point]) -> list[Point]:
    """Exponential, over about a sixtieth of the run, and without the pull of its first value."""
    keep = 1 - 1 / max(len(points) / 60, 1)
    total = weight = 0.0
    smooth = []
    for step, value in points:
        total, weight = keep * total + value, keep * weight + 1
        smooth.append((step, total / weight))
    return smooth


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    stride = math.ceil(len(points) / MOST_POINTS)
    return points if stride <= 1 else [*points[::stride], points[-1]]


def _axes(frame: Frame) -> Iterable[str]:
    for value in ticks(*frame.y):
        _, y = frame.place((frame.x[0], value))
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
    for value in ticks(*frame.x):
        x, _ = frame.place((value, frame.y[0]))
        yield f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{value:g}</text>'
    yield f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 2}" text-anchor="end">optimiser step</text>'


def ticks(low: float, high: float) -> list[float]:
    """A few round numbers (1, 2 or 5 times a power of ten) inside low and high."""
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 10) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _line(frame: Frame, points: Sequence[Point], kind: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(frame.place, points))
    return f'<polyline class="{kind}" points="{path}"/>' if len(points) > 1 else ""


def _dot(frame: Frame, point: Point) -> str:
    x, y = frame.place(point)
    return f'<circle class="eval" cx="{x:.1f}" cy="{y:.1f}" r="3.5"><title>{point[1]:.4f}</title></circle>'


def _spoken(trained: Sequence[Point], evaluated: Sequence[Point]) -> str:
    def said(name: str, points: Sequence[Point]) -> str:
        return f"{name} from {points[0][1]:.3f} to {points[-1][1]:.3f}" if points else f"no {name}"

    return f"{said('training loss', trained)}; {said('held-out loss', evaluated)}"
