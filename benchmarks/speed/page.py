"""The result as a page, `docs/speed.md`: what was wanted, and a table and a drawing for each topic."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.speed.plot import bars, scaling

HEAD = """# Speed and memory

Made by `make bench` from `benchmarks/results/speed.json`; do not edit. Every side is a process of its own that loads
the same checkpoint, starts from the same adapter and learns the same tokens with the same settings of AdamW; all take
turns in one run, idle while another is measured. Seconds are medians over all timed steps with the least and the most;
memory is the most that the process held in the timed steps of that very run. Losses are compared at every step; of
sides whose trained weights are held in bfloat16 at the first alone, since what is small of each update is lost there.
The base has SmolLM2-135M's shape with weights at random, in bfloat16, unless another is named.

Not measured here: CUDA, and with it PEFT with Liger-Kernel.
"""
TOLD = {
    "dense": "Equal documents",
    "untiled": "Without AMX",
    "avx512": "Without arithmetic in bfloat16",
    "avx2": "With AVX2 alone",
    "mixed": "Documents of mixed length",
    "full": "Beside full fine-tuning",
    "dora": "DoRA",
    "qlora": "QLoRA",
    "minilm": "A real encoder",
    "linear": "Growth",
    "memory": "Memory of each side alone",
}


def page(result: Mapping[str, Any]) -> str:
    topics = [topic(name, result["topics"][name]) for name in TOLD if name in result["topics"]]
    return "\n".join([HEAD, wanted(result.get("wanted", [])), *topics])


def wanted(verdicts: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [each["figure"], f"at {each['at']} {_value(each, 'wanted')}", _found(each), _met(each)] for each in verdicts
    ]
    return "\n".join(["## What was wanted", "", *table(["figure", "wanted", "measured", ""], rows), ""])


def _value(each: Mapping[str, Any], key: str) -> str:
    return f"{100 * each[key]:.0f} %" if each.get("share") else f"{each[key]:.2f}"


def _found(each: Mapping[str, Any]) -> str:
    return "not measured" if each["found"] is None else _value(each, "found")


def _met(each: Mapping[str, Any]) -> str:
    return {True: "met", False: "**not met**", None: "-"}[each["met"]]


def topic(name: str, found: Mapping[str, Any]) -> str:
    body = {"linear": growth, "memory": alone}.get(name, beside)(found)
    return "\n".join([f"## {TOLD[name]}", "", f"{found['about']}; {machine(found['machine'])}.", "", *body, ""])


def machine(of: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {of['versions'][name]}" for name in ("torch", "transformers", "peft"))
    return f"{of['cores']} cores of {of['processor']}; {versions}"


def beside(found: Mapping[str, Any]) -> list[str]:
    sides = {name: side for name, side in found["sides"].items() if name != "products"}
    samples = any("samples_per_second" in side for side in sides.values())
    head = ["side", "seconds a step", "real tokens/s", *(["samples/s"] if samples else []), "peak memory"]
    rows = [_side(name, side, samples) for name, side in sides.items()]
    rates = any("cells" in side for side in sides.values()) and "operations" not in found
    shown = {name: _rate(side["tokens_per_second"]) if rates else side["step_seconds"] for name, side in sides.items()}
    title = (
        "real tokens a second, with the least and the most of a turn"
        if rates
        else "seconds a step, with the least and the most"
    )
    drawn = bars(title, shown, "" if rates else "s")
    counts = sorted({len(side["seconds"]) for side in sides.values()})
    timed = f"Timed steps of each side: {', '.join(map(str, counts))}."
    return [*table(head, rows), "", timed, "", *floor(found), agreed(found), "", drawn]


def _rate(found: Mapping[str, Any]) -> dict[str, float]:
    """Over all steps, as the table has it, with the least and the most of a turn."""
    return {
        "median": found["whole"],
        "low": min(found["low"], found["whole"]),
        "high": max(found["high"], found["whole"]),
    }


def _side(name: str, side: Mapping[str, Any], samples: bool) -> list[str]:
    each = side["step_seconds"]
    seconds = f"{each['median']:.3g} [{each['low']:.3g}, {each['high']:.3g}]"
    rates = [f"{side['samples_per_second']:.0f}"] if samples else []
    return [name, seconds, f"{side['tokens_per_second']['whole']:,.0f}", *rates, gigabytes(side["peak_bytes"])]


def floor(found: Mapping[str, Any]) -> list[str]:
    """What the operations alone would take at the measured peak."""
    if not found.get("peak_gflops"):
        return []
    best = found["sides"]["products"]
    by = Counter(best.get("by", ["the library"])).most_common(1)[0][0]
    at = {kind: operations / found["peak_gflops"] / 1e9 for kind, operations in found["operations"].items()}
    return [
        f"The best of a sweep of products, by {by}: {found['peak_gflops']:,.0f} GFLOP/s, the median of "
        f"{len(best['gflops'])} sweeps between the steps. At that rate the operations take {at['adapter']:.2f} s with "
        f"adapters ({at['adapter, without its own']:.2f} s without the adapter's own), {at['full']:.2f} s in full.",
        *held(found, best),
        "",
    ]


def held(found: Mapping[str, Any], best: Mapping[str, Any]) -> list[str]:
    """The same beside a product made for about as long as a step is."""
    if "held_gflops" not in best:
        return []
    rate = statistics.median(best["held_gflops"])
    share = found["operations"]["adapter"] / rate / 1e9 / found["sides"]["lorica"]["step_seconds"]["median"]
    return [
        "",
        f"Made over and over for as long as a step, the best of each sweep comes to {rate:,.0f} GFLOP/s (median); "
        f"of that Lorica's step reaches {share:.0%}.",
    ]


def agreed(found: Mapping[str, Any]) -> str:
    judged = found.get("agreement")
    if not judged:
        return ""
    most = max(judged["apart"].values(), default=0.0)
    where = f"at each of {judged['steps']} steps" if judged["steps"] else "on the same rows before the first step"
    word = "agree" if judged["agree"] else "**do not agree**"
    return f"Losses {word} {where}: at most {most:.1e} of the loss apart, {judged['allowed']:.1e} allowed for bfloat16."


def growth(found: Mapping[str, Any]) -> list[str]:
    lines = []
    for kind, across in (("tokens", "tokens a step"), ("layers", "layers"), ("documents", "tokens a document")):
        points = [point for point in found["points"] if point["kind"] == kind]
        key = "longest" if kind == "documents" else kind
        rows = [
            [
                f"{point[key]:,}",
                f"{point['seconds']['median']:.2f}",
                f"{point['gflops']:,.0f}",
                gigabytes(point["peak_bytes"]),
            ]
            for point in points
        ]
        lines += [
            *table([across, "seconds a step", "GFLOP/s", "peak memory"], rows),
            "",
            _scaled(points, key, across),
            "",
        ]
    return lines


def _scaled(points: Sequence[Mapping[str, Any]], key: str, across: str) -> str:
    """The dashed line is the best rate of them all."""
    best = max(point["operations"] / point["seconds"]["median"] for point in points)
    measured = [(point[key], point["seconds"]["median"]) for point in points]
    return scaling(
        f"seconds a step against {across}", across, measured, [(p[key], p["operations"] / best) for p in points]
    )


def alone(found: Mapping[str, Any]) -> list[str]:
    counts = sorted({int(count) for side in found["sides"].values() for count in side["peak_bytes"]})
    rows = [
        [name, gigabytes(side["resident_bytes"]), *(gigabytes(side["peak_bytes"][str(count)]) for count in counts)]
        for name, side in found["sides"].items()
    ]
    return table(["side", "loaded", *(f"{count:,} tokens a step" for count in counts)], rows)


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
