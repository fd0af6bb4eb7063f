"""README.md of an adapter folder: what it is, what it was trained on, how to use it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lorica.adapter.plan import Plan


def card(plan: Plan, base: str | None, facts: Mapping[str, Any], peft: bool, load: Mapping[str, Any]) -> str:
    """`base` is named where others can have it too: a hub id or `embedded`, no path of this machine.  `load`: how it
    was quantised as it was loaded."""
    base = base if base and not Path(base).is_absolute() else None
    parts = [
        _front_matter(plan, base, peft),
        _what(plan, base),
        *_unfinished(facts),
        *_made_from(facts),
        *_facts(facts),
        _use(base, peft, load),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(plan: Plan, base: str | None, peft: bool) -> str:
    known: dict[str, Any] = {"base_model": base} if base and base != "embedded" else {}
    if peft:
        known["library_name"] = "peft"
    known["tags"] = ["lorica", *(method.kind for method in plan.methods)]
    return f"---\n{yaml.safe_dump(known, sort_keys=False)}---"


def _what(plan: Plan, base: str | None) -> str:
    names = " and ".join(method.kind for method in plan.methods)
    table = "\n".join(str(plan).splitlines()[1:])
    return f"# An adapter ({names}) for {base or 'a base of its own'}\n\n```\n{table}\n```"


def _unfinished(facts: Mapping[str, Any]) -> list[str]:
    """What its method, or its run, did not come to the end of."""
    told = [f"> **Not finished.** {facts['unfinished']}"] if "unfinished" in facts else []
    return told + [f"> **Cut short.** {line}" for line in cut_short(facts)]


def cut_short(facts: Mapping[str, Any]) -> list[str]:
    """A line of an adapter that was made of a run with steps left; also of a file by others."""
    cut = facts.get("cut_short")
    if not isinstance(cut, Mapping):
        return []
    return [
        f"as step {cut.get('step')} left it; its run was cut short after step {cut.get('after')} of {cut.get('of')}"
    ]


def _made_from(facts: Mapping[str, Any]) -> list[str]:
    """The adapters that it is a blend of, or that was resized, by digest: a path of this machine says nothing there."""
    if facts.get("made") not in ("combined", "resized"):
        return []
    rows = [_parent(parent) for parent in facts.get("parents") or () if isinstance(parent, Mapping)]
    return ["\n".join([f"Made from other adapters ({facts['made']}):", "", *rows])]


def _parent(parent: Mapping[str, Any]) -> str:
    weight = "" if parent.get("weight") is None else f"{parent['weight']:g} x "
    return f"- {weight}{Path(str(parent.get('source'))).name}, SHA-256 `{parent.get('digest')}`"


def _facts(facts: Mapping[str, Any]) -> list[str]:
    metrics = facts.get("metrics")
    if not isinstance(metrics, Mapping) or not metrics:
        return []
    rows = [f"| {name} | {_shown(value)} |" for name, value in metrics.items() if not isinstance(value, Mapping)]
    return ["\n".join(["| metric | value |", "|---|---|", *rows])]


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _use(base: str | None, peft: bool, load: Mapping[str, Any]) -> str:
    source = base or "path-of-the-base"
    asked = "".join(f", {name}={value!r}" for name, value in load.items() if value)
    ours = f'model = lorica.load_base("{source}"{asked})\nattached = lorica.load(model, "this-folder")'
    blocks = [f"```python\nimport lorica\n\n{ours}\n```"]
    if peft:
        theirs = 'from peft import PeftModel\n\nmodel = PeftModel.from_pretrained(model, "this-folder")'
        blocks.append(f"```python\n{theirs}\n```")
    return "\n\n".join(["## Use", *blocks])
