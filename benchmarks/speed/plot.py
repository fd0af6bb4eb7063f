"""Drawings of the page as inline SVG: bars of step times, and time against tokens or layers on two logarithmic axes."""

import math
from collections.abc import Mapping, Sequence

WIDTH, ROW, LEFT, RIGHT = 640, 26, 300, 80
SIDE, TOP, BOTTOM, HEIGHT = 60, 16, 44, 280
Point = tuple[float, float]


def bars(title: str, found: Mapping[str, Mapping[str, float]], unit: str) -> str:
    """found: {name: {median, low, high}}.  A bar to the median, a whisker from low to high."""
    most = max(each["high"] for each in found.values())
    height = ROW * (len(found) + 1)

    def x(value: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * value / most, 1)

    drawn = [_bar(name, each, ROW * place, x, unit) for place, (name, each) in enumerate(found.items())]
    return _drawing(title, height, [*drawn, f'<text x="{LEFT}" y="{height - 8}">{title}</text>'])


def _bar(name: str, each: Mapping[str, float], y: float, x, unit: str) -> str:
    middle = y + ROW / 2
    weight = ' font-weight="bold"' if name.startswith("lorica") else ""
    return (
        f'<text x="{LEFT - 12}" y="{middle + 4}" text-anchor="end"{weight}>{name}</text>'
        f'<rect x="{LEFT}" y="{y + 5}" width="{round(x(each["median"]) - LEFT, 1)}" height="{ROW - 10}" opacity="0.6"/>'
        f'<line x1="{x(each["low"])}" x2="{x(each["high"])}" y1="{middle}" y2="{middle}" stroke="gray"/>'
        f'<text x="{x(each["high"]) + 6}" y="{middle + 4}">{each["median"]:.2f} {unit}</text>'
    )


def scaling(title: str, across: str, points: Sequence[Point], ideal: Sequence[Point]) -> str:
    """points: (what grows, seconds), measured; ideal: what they would be at one rate.  Both axes are logarithmic."""
    xs, ys = zip(*points, *ideal, strict=True)
    low, high = (min(xs), min(ys)), (max(xs), max(ys))

    def place(point: Point) -> Point:
        across_, up = (_part(value, a, b) for value, a, b in zip(point, low, high, strict=True))
        return round(SIDE + across_ * (WIDTH - 2 * SIDE), 1), round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1)

    line = " ".join(f"{x},{y}" for x, y in map(place, sorted(ideal)))
    dots = [_dot(place(point), point) for point in points]
    rule = f'<line x1="{SIDE - 10}" x2="{WIDTH - SIDE + 10}" y1="{HEIGHT - BOTTOM + 8}" y2="{HEIGHT - BOTTOM + 8}"/>'
    ticks = [
        f'<text x="{place((value, low[1]))[0]}" y="{HEIGHT - 20}" text-anchor="middle">{value:,.0f}</text>'
        for value in sorted({x for x, _ in points})
    ]
    dashed = f'<polyline points="{line}" fill="none" stroke-dasharray="4 4"/>'
    said = f'<text x="{SIDE}" y="{HEIGHT - 4}" stroke="none">{across}; dashed: in step with the operations</text>'
    labels = f'<g stroke="none">{"".join(ticks)}</g>'
    return _drawing(title, HEIGHT, ['<g stroke="gray">', rule, dashed, said, labels, "</g>", *dots])


def _part(value: float, low: float, high: float) -> float:
    return 0.5 if high == low else math.log(value / low) / math.log(high / low)


def _dot(place: Point, point: Point) -> str:
    x, y = place
    return f'<circle cx="{x}" cy="{y}" r="4"/><text x="{x + 8}" y="{y + 12}">{point[1]:.2f} s</text>'


def _drawing(title: str, height: float, parts: Sequence[str]) -> str:
    """Without blank lines: they would end it in Markdown."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" role="img"'
        f' aria-label="{title}" font-family="sans-serif" font-size="12" fill="gray" stroke="none">'
    )
    return "\n".join([head, *parts, "</svg>"])
