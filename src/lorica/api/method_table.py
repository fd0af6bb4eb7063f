"""The table of methods: what each trains on a base, what it can do, and on request what its step costs here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from lorica import adapter
from lorica.api.measuring import Cost, costs
from lorica.errors import LoricaError
from lorica.methods import METHODS, LoRA, Method
from lorica.methods.presets import LEARNING_RATE, PRESETS
from lorica.models import load_base, shapes_only

ADVICE = f"learning rate for all three: start at {LEARNING_RATE}"
SIZES = "method: {preset: small}, or medium, or large:"
COLUMNS = "{:<18}{:>14}  {:<11}{:<11}{:<17}{:>6}{:>8}"


@dataclass(frozen=True)
class MethodTable:
    """A row a method; `trainable_parameters` on the base named, None where its defaults do not fit it.

    Where it was measured, `relative_step_time` and `relative_memory` (what is kept for the backward pass, and trained
    parameters with gradient and optimiser state) are shares of LoRA's.
    """

    base: str
    rows: tuple[dict[str, Any], ...]

    def to_dict(self) -> list[dict[str, Any]]:
        return [dict(row) for row in self.rows]

    def __str__(self) -> str:
        measured = any("relative_step_time" in row for row in self.rows)
        titles = ("time", "memory") if measured else ("", "")
        head = COLUMNS.format("method", "parameters", "mergeable", "batchable", "PEFT", *titles)
        lines = [f"on {self.base}", head, *(_line(row) for row in self.rows)]
        legend = ["time and memory of a step: shares of LoRA's, measured here"] if measured else []
        sizes = [f"  {preset}" for preset in PRESETS.values()]
        return "\n".join(
            [
                *map(str.rstrip, lines),
                *legend,
                "",
                SIZES,
                *sizes,
                f"  {ADVICE}",
            ]
        )


def method_table(model: str = "embedded", *, measure: bool = False) -> MethodTable:
    """Every method with its defaults on a base; `measure` takes some passes of each, a minute on the embedded base."""
    shapes = shapes_only(model)
    fitting = {name: kind for name, kind in METHODS.items() if _trained(shapes, kind) is not None}
    found = costs(load_base(model), {name: kind() for name, kind in fitting.items()}) if measure else {}
    rows = [{**_row(shapes, name, kind), **_relative(found, name)} for name, kind in METHODS.items()]
    return MethodTable(model, tuple(rows))


def _row(shapes: nn.Module, name: str, kind: type[Method]) -> dict[str, Any]:
    return {
        "name": name,
        "trainable_parameters": _trained(shapes, kind),
        "mergeable": kind.mergeable,
        "batchable": kind.batchable,
        "peft_type": kind.peft_type,
        "presets": {name: preset.to_dict() for name, preset in PRESETS.items()} if kind is LoRA else {},
    }


def _trained(shapes: nn.Module, kind: type[Method]) -> int | None:
    try:
        return adapter.plan(shapes, kind()).trainable_parameters
    except LoricaError:
        return None


def _relative(found: Mapping[str, Cost], name: str) -> dict[str, float]:
    if name not in found:
        return {}
    cost, lora = found[name], found[LoRA.kind]
    return {
        "relative_step_time": round(cost.step / lora.step, 2),
        "relative_memory": round(cost.memory / lora.memory, 2),
    }


def _line(row: Mapping[str, Any]) -> str:
    count = row["trainable_parameters"]
    return COLUMNS.format(
        row["name"],
        "-" if count is None else f"{count:,}",
        _word(row["mergeable"]),
        _word(row["batchable"]),
        row["peft_type"] or "-",
        row.get("relative_step_time", ""),
        row.get("relative_memory", ""),
    )


def _word(value: bool) -> str:
    return "yes" if value else "no"
