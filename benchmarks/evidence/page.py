"""The results as a page, `docs/evidence.md`: a table and a plot for each track."""

import math
from collections.abc import Mapping
from typing import Any

from benchmarks.evidence.arms import FULL, LORA
from benchmarks.evidence.summary import MARGIN

HEAD = """# First evidence

Made by `make evidence` from `benchmarks/results/evidence.json`; do not edit. Every arm has its own learning rate, the
best of a half-decade grid of five on validation data with one seed, moved until the best was inside; all runs of a
track are equally long. Then each arm ran on fresh seeds, the same ones for all arms, and was scored once on
a test part that nothing had read before. Intervals are 95 % bootstrap intervals over seeds: they say how far another
seed may lie, not another test part. A difference is of the same seed in two arms; p is the exact sign-flip p value
after Holm's correction over the differences of the track; "equal" means that the 90 % interval lies within two points,
which was fixed beforehand. Trained numbers are in percent of the base's. Seconds are the median of a run with its test,
on one thread of a machine that did other work as well.
"""
TOLD = {
    "minilm": """all-MiniLM-L6-v2 learns which package of the standard library a docstring belongs to. Whole files are
held out: no file has docstrings in two parts. Every arm trains the new head as well.""",
    "quickstart": """The embedded base learns text-to-SQL; its queries are run in SQLite and their results compared.
Names and wordings of the test never occur in training. There is no head, so the frozen base itself is the bottom row,
and no BitFit: the base has no biases.""",
}
WIDTH, ROW, LEFT, RIGHT = 640, 26, 190, 60


def page(result: Mapping[str, Any]) -> str:
    return "\n".join([HEAD, *(track(name, found) for name, found in result["tracks"].items()), ""])


def track(name: str, found: Mapping[str, Any]) -> str:
    arms = found["arms"]
    lines = [f"## {name}", "", TOLD.get(name, ""), "", facts(found), ""]
    if not arms:
        return "\n".join([*lines, "No run is done yet.", ""])
    return "\n".join([*lines, *table(arms), "", verdict(arms), "", plot(arms, found["metric"]), ""])


def facts(found: Mapping[str, Any]) -> str:
    said = found["facts"]
    counts = said.get("texts") or said.get("questions") or {}
    sizes = ", ".join(f"{count:,} {part}" for part, count in counts.items())
    majority = f" The commonest label is {said['majority']:.1%} of the test." if "majority" in said else ""
    of = found["machine"]
    on = f"{of['cores']} cores of {of['processor']}, torch {of['versions']['torch']}, Python {of['python']}"
    partly = "" if found["complete"] else " **Not all runs are done yet.**"
    return f"{said['base']}; {sizes}; {found['length']} {found['unit']} a run; {on}.{majority}{partly}"


def table(arms: Mapping[str, Any]) -> list[str]:
    head = ["arm", "trained", "learning rate", "score", "minus full", "p", "minus LoRA r=8", "p", "seconds"]
    rows = [_row(arm) for arm in arms.values()]
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _row(arm: Mapping[str, Any]) -> list[str]:
    rate = f"{arm['tuning']['best']:.1e}{'' if arm['tuning']['inside'] else ' (at the edge)'}" if arm["tuning"] else "-"
    differences = [cell for other in (FULL, LORA) for cell in _difference(arm.get(f"minus_{other}"))]
    mean = _interval(arm["score"]) if len(arm["test"]) > 1 else f"{100 * arm['score']['mean']:.1f}"
    return [arm["told"], f"{arm['percent']:.2f} %", rate, mean, *differences, f"{arm['seconds']:.0f}"]


def _difference(found: Mapping[str, Any] | None) -> tuple[str, str]:
    if found is None:
        return "-", "-"
    return f"{_interval(found, '+')}{', equal' if found['equivalent'] else ''}", f"{found['p_holm']:.3f}"


def _interval(of: Mapping[str, float], sign: str = "") -> str:
    return f"{100 * of['mean']:{sign}.1f} [{100 * of['low']:{sign}.1f}, {100 * of['high']:{sign}.1f}]"


def verdict(arms: Mapping[str, Any]) -> str:
    """What was wanted beforehand, and whether it came true."""
    against = arms.get(LORA, {}).get(f"minus_{FULL}")
    if against is None:
        return ""
    held = "is" if against["equivalent"] else "is not shown to be"
    share, pairs = arms[LORA]["percent"], against["pairs"]
    return f"LoRA r=8, {share:.2f} % of the parameters, {held} within 2 points of full fine-tuning ({pairs} pairs)."


def plot(arms: Mapping[str, Any], metric: str) -> str:
    """Means and intervals as one inline SVG, without blank lines: they would end it in Markdown."""
    full = arms[FULL]["score"]["mean"] if FULL in arms else None
    margin = [] if full is None else [full - MARGIN, full + MARGIN]
    low = min([*margin, *(arm["score"]["low"] for arm in arms.values())])
    high = max([*margin, *(arm["score"]["high"] for arm in arms.values())])
    room = max(high - low, 1e-3)

    def x(value: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / room, 1)

    bars = [_bar(arm, ROW * (place + 0.5), x) for place, arm in enumerate(arms.values())]
    bottom = ROW * len(arms)
    title = f"{metric} in %, mean and 95 % interval over seeds" + ("; grey: two points around full" if margin else "")
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 44}" width="{WIDTH}" role="img"'
            f' aria-label="{title}" font-family="sans-serif" font-size="12" fill="gray" stroke="none">',
            *([_band(x(margin[0]), x(margin[1]), bottom)] if margin else []),
            *bars,
            *(_tick(x(value), value, bottom) for value in _round_values(low, high)),
            f'<text x="{WIDTH / 2}" y="{bottom + 38}" text-anchor="middle">{title}</text>',
            "</svg>",
        ]
    )


def _band(left: float, right: float, height: float) -> str:
    return f'<rect x="{left}" width="{round(right - left, 1)}" y="0" height="{height}" opacity="0.2"/>'


def _round_values(low: float, high: float) -> list[float]:
    """Four to nine values between, whole tenths, twentieths or hundredths."""
    step = next((step for step in (0.1, 0.05, 0.02, 0.01) if (high - low) / step >= 4), 0.005)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [round(number * step, 4) for number in range(first, last + 1)]


def _tick(x: float, value: float, y: float) -> str:
    return (
        f'<line x1="{x}" x2="{x}" y1="{y}" y2="{y + 5}" stroke="gray"/>'
        f'<text x="{x}" y="{y + 18}" text-anchor="middle">{100 * value:g}</text>'
    )


def _bar(arm: Mapping[str, Any], y: float, x: Any) -> str:
    mean, low, high = (arm["score"][part] for part in ("mean", "low", "high"))
    return (
        f'<text x="{LEFT - 12}" y="{y + 4}" text-anchor="end">{arm["told"]}</text>'
        f'<line x1="{x(low)}" x2="{x(high)}" y1="{y}" y2="{y}" stroke="gray" stroke-width="2"/>'
        f'<circle cx="{x(mean)}" cy="{y}" r="4"/>'
        f'<text x="{x(high) + 8}" y="{y + 4}">{100 * mean:.1f}</text>'
    )
