"""The result of the four skills as a page, `docs/skills.md`."""

from collections.abc import Mapping, Sequence
from typing import Any

Found = Mapping[str, Any]
HEAD = """# Four skills on one base

Made by `python -m benchmarks.skills` from `benchmarks/results/skills.json`; do not edit. Each skill is a LoRA of rank
16 on the embedded base, trained by the quickstart's recipe on rows drawn from a seed; what its test is made of never
occurs in training. Every adapter answers the test of every skill, and so does the base. That one command does it all
again, from the rows to this page.

Rows have forms that a base of 7 million parameters can learn, and the training sentences of `json` and `dates` were
widened after a look at what failed: these scores are of these tests, and no estimate for sentences of another author.
"""


def page(found: Found) -> str:
    parts = [HEAD, _skills(found), _matrix(found), _blends(found), _served(found), _machine(found)]
    return "\n".join(parts)


def _skills(found: Found) -> str:
    head = ["skill", "what is asked", "new in the test", "right is", "trained on", "seconds", "adapter"]
    rows = [
        [
            f"`{name}`",
            said["says"],
            said["apart"],
            said["measure"],
            f"{said['train_rows']:,} rows",
            f"{said['seconds']:.0f}",
            f"{said['bytes'] / 1e6:.2f} MB",
        ]
        for name, said in found["skills"].items()
    ]
    shown = [
        f"`{name}`\n\n```text\n{said['example']['prompt'].strip()}\n-> {said['example']['completion']}\n```\n"
        for name, said in found["skills"].items()
    ]
    return "\n".join(["## The skills", "", *_table(head, rows), "", "The first row of each test:", "", *shown])


def _matrix(found: Found) -> str:
    tasks = list(found["skills"])
    rows = [
        [f"`{who}`", *(_percent(scores[task], who == task) for task in tasks)]
        for who, scores in found["matrix"].items()
    ]
    count = found["test_rows"]
    return "\n".join(
        [
            "## Every adapter on every task",
            "",
            f"Percent of {count} rows answered rightly; one in two rows has a standard error of"
            f" {100 * (0.25 / count) ** 0.5:.1f} points.",
            "",
            *_table(["", *(f"on `{task}`" for task in tasks)], rows),
            "",
            *_elsewhere(found),
        ]
    )


def _elsewhere(found: Found) -> list[str]:
    """What cannot be seen where the base itself knows nothing."""
    if any(found["matrix"]["base"].values()):
        return []
    return ["The base answers none of them, so what an adapter takes from the other tasks cannot show here.", ""]


def _blends(found: Found) -> str:
    rows = [_blend(blend) for blend in found["blends"]]
    head = ["blend", "first task", "of its own", "second task", "of its own"]
    return "\n".join(
        [
            "## Blends of two",
            "",
            "A blend adds the weighted deltas of both adapters in every forward pass. Beside each score stands what"
            " percent it is of the score that the adapter has alone.",
            "",
            *_table(head, rows),
            "",
            _verdict(found["blends"]),
            "",
        ]
    )


def _verdict(blends: Sequence[Found]) -> str:
    best = max(blends, key=lambda blend: min(blend["kept"].values()))
    kept = " and ".join(f"{_percent(share)} % of `{name}`" for name, share in best["kept"].items())
    both = [blend for blend in blends if min(blend["kept"].values()) > 0.5]
    one = [blend for blend in blends if max(blend["kept"].values()) > 0.5]
    return (
        f"{len(both)} of {len(blends)} blends keep more than half of both, {len(one)} more than half of one; the one"
        f" that keeps most of both, {_blend(best)[0]}, keeps {kept}."
    )


def _blend(blend: Found) -> list[str]:
    cells = [" + ".join(f"{weight:g} `{name}`" for name, weight in blend["weights"].items())]
    for name in blend["weights"]:
        cells += [f"`{name}` {_percent(blend['scores'][name])}", _percent(blend["kept"][name])]
    return cells


def _served(found: Found) -> str:
    if "served" not in found:
        return "## Served together\n\nNot measured yet.\n"
    served = found["served"]
    differing, requests = sum(served["answers_that_differ"].values()), served["requests"]
    moved = [
        f"{name}: {100 * score:.1f} served, {100 * served['offline'][name]:.1f} offline"
        for name, score in served["scores"].items()
        if score != served["offline"][name]
    ]
    equal = "every score equals the one offline." if not moved else f"scores that moved: {'; '.join(moved)}."
    rate = served["tokens_in_these_seconds"] / served["seconds"]
    return "\n".join(
        [
            "## Served together",
            "",
            f"The same through `lorica serve` and the OpenAI client: {requests:,} requests to the base, the four"
            f" adapters and the blends in one drawn order, {served['clients']} at a time, {rate:,.0f} tokens written a"
            f" second on a machine that did other work as well. {requests - differing:,} answers are those given"
            f" offline, to the character; {equal}",
            "",
        ]
    )


def _machine(found: Found) -> str:
    of = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in of["versions"].items())
    return (
        f"Measured on {of['cores']} cores of {of['processor']}, Python {of['python']}, {versions}; {found['base']}.\n"
    )


def _percent(share: float, own: bool = False) -> str:
    return f"**{100 * share:.1f}**" if own else f"{100 * share:.1f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
