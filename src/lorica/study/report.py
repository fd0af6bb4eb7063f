"""`report.html`: one page that stands alone, with the curve, before and after, samples, the plan and the settings.

Nothing is fetched and no script runs; every text that comes from a run is escaped.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from lorica.adapter.ranks import RankGrid
from lorica.study.curve import curve
from lorica.study.heat_map import heat_map


@dataclass(frozen=True)
class Measure:
    """One number before training and after."""

    name: str
    before: float
    after: float
    unit: str = ""


@dataclass(frozen=True)
class Sample:
    """One prompt, what base and adapter say to it, and what was wanted where that is known."""

    prompt: str
    before: str
    after: str
    wanted: str = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """history: the lines of `metrics.jsonl`.  facts: names and values for the head of the page.  ranks: where a method
    that chooses them left them."""

    title: str
    summary: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    table: Sequence[Measure] = ()
    samples: Sequence[Sample] = ()
    plan: str = ""
    ranks: RankGrid | None = None
    settings: str = ""
    next_steps: Sequence[str] = ()


def html(report: Report) -> str:
    """The page, as text."""
    body = "\n".join(part for part in _body(report) if part)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _body(report: Report) -> Iterable[str]:
    yield f"<h1>{escape(report.title)}</h1>"
    yield f'<p class="summary">{escape(report.summary)}</p>' if report.summary else ""
    yield _facts(report.facts)
    yield _section("Before and after", _table(report.table))
    yield _section("Loss", curve(report.history))
    yield _section("Where the rank went", heat_map(report.ranks) if report.ranks else "")
    yield _section("Samples", "".join(map(_sample, report.samples)))
    yield _section("What to type next", _pre("\n".join(report.next_steps)))
    yield _section("What was trained", _pre(report.plan))
    yield _section("Settings", _pre(report.settings))


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{content}\n</section>" if content else ""


def _pre(text: str) -> str:
    return f"<pre>{escape(text)}</pre>" if text else ""


def _facts(facts: Mapping[str, str]) -> str:
    rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f"<dl>{rows}</dl>" if rows else ""


def _table(measures: Sequence[Measure]) -> str:
    if not measures:
        return ""
    heads = "".join(f"<th>{name}</th>" for name in ("", "base", "with the adapter", "change"))
    rows = "".join(map(_row, measures))
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


def _row(measure: Measure) -> str:
    cells = [_number(measure.before), _number(measure.after), _number(measure.after - measure.before, sign="+")]
    numbers = "".join(f"<td>{cell}{escape(measure.unit)}</td>" for cell in cells)
    return f"<tr><th>{escape(measure.name)}</th>{numbers}</tr>"


def _number(value: float, sign: str = "") -> str:
    places = 1 if abs(value) >= 10 else 3
    return f"{value:{sign},.{places}f}".replace("-", "\u2212")


def _sample(sample: Sample) -> str:
    parts = [
        ("base", sample.before),
        ("adapter", sample.after),
        *([("wanted", sample.wanted)] if sample.wanted else []),
    ]
    said = "".join(f"<div><h3>{name}</h3><pre>{escape(text)}</pre></div>" for name, text in parts)
    return f'<article><pre class="prompt">{escape(sample.prompt)}</pre><div class="beside">{said}</div></article>'


STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --faint: #667085; --paper: #fdfdfc; --panel: #f2f3f1; --line: #d9dcd6;
  --train: #2f6f8f; --eval: #c2571a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e7e4; --faint: #99a1a8; --paper: #15181c; --panel: #1f2429;
  --line: #363d44; --train: #6fb4d6; --eval: #f09a5b; } }
body { margin: 2.5rem auto; max-width: 52rem; padding: 0 1.25rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.25rem 0 .6rem; }
h3 { font-size: .75rem; margin: 0; color: var(--faint); font-weight: 600; }
.summary { color: var(--faint); margin: 0 0 1.25rem; }
dl { display: flex; flex-wrap: wrap; gap: .75rem 2.25rem; margin: 1.25rem 0; }
dt { color: var(--faint); font-size: .8rem; } dd { margin: 0; font-size: 1.15rem; font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem 1.5rem .35rem 0; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child { text-align: left; } thead th { color: var(--faint); font-weight: 500; font-size: .85rem; }
pre { margin: 0; padding: .7rem .9rem; background: var(--panel); border-radius: 6px; overflow-x: auto;
  font: 13px/1.5 ui-monospace, monospace; }
article { margin: 0 0 1.25rem; } .prompt { border-left: 3px solid var(--line); white-space: pre-wrap; }
.beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: .6rem; margin-top: .6rem; }
.beside pre { white-space: pre-wrap; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
svg { width: 100%; height: auto; } svg text { fill: var(--faint); font-size: 12px; }
polyline { fill: none; stroke-width: 2; stroke-linejoin: round; } .grid { stroke: var(--line); stroke-width: 1; }
polyline.step { stroke: var(--train); opacity: .28; stroke-width: 1; } polyline.train { stroke: var(--train); }
polyline.eval { stroke: var(--eval); } circle.eval { fill: var(--eval); }
rect.cell { fill: var(--train); stroke: var(--line); } svg text.on { fill: var(--paper); }
svg text.off { fill: var(--ink); }
.legend { color: var(--faint); font-size: .85rem; margin: .25rem 0 0; }
.swatch { display: inline-block; width: 1.1rem; height: .2rem; margin: 0 .45rem .25rem 0; }
.swatch.train { background: var(--train); } .swatch.eval { background: var(--eval); margin-left: 1.5rem; }
@media print { body { margin: 0; } section { break-inside: avoid; } }
"""
