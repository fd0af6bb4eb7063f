"""Starts of the LoRA family: one file each, with what it declares at step 0 and its equation.

They start exactly at the base, B being zero or the starting product subtracted in one of its own; loftq alone starts
near a quantised one, and nearer to what was quantised.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, ValidationError

from lorica.errors import by_field, did_you_mean
from lorica.methods.starts.contract import Beside, Init, Moved, Near
from lorica.methods.starts.eva import EVA
from lorica.methods.starts.gaussian import Gaussian
from lorica.methods.starts.kaiming import Kaiming
from lorica.methods.starts.loftq import LoftQ
from lorica.methods.starts.lora_ga import LoRAGA
from lorica.methods.starts.olora import OLoRA
from lorica.methods.starts.pissa import PiSSA

STARTS: dict[str, type[Init]] = {start.kind: start for start in (Kaiming, Gaussian, PiSSA, OLoRA, EVA, LoRAGA, LoftQ)}


def parsed(value: Any) -> Init:
    """A start by its name, `pissa`, or by its name and options, `{name: pissa, niter: 16}`."""
    if isinstance(value, Init):
        return value
    fields = {"name": value} if isinstance(value, str) else value
    if not isinstance(fields, Mapping) or not isinstance(fields.get("name"), str):
        raise ValueError(f"names one of {', '.join(STARTS)}, as in `init: pissa` or `init: {{name: eva, rho: 2.0}}`")
    name = fields["name"]
    if name not in STARTS:
        raise ValueError(f"no start is called {name!r}{did_you_mean(name, STARTS)}; there are {', '.join(STARTS)}")
    return _with_options(STARTS[name], {key: option for key, option in fields.items() if key != "name"})


def _with_options(start: type[Init], options: dict[str, Any]) -> Init:
    strange = [
        f"{key}: {start.kind} has no such option{_known(start, key)}"
        for key in options
        if key not in start.model_fields
    ]
    if strange:
        raise ValueError("; ".join(strange))
    try:
        return start.model_validate(options)
    except ValidationError as error:
        raise ValueError("; ".join(by_field(error))) from error


def _known(start: type[Init], key: str) -> str:
    return did_you_mean(key, start.model_fields) or f"; it has {', '.join(start.model_fields) or 'none'}"


def spelled(start: Init) -> Any:
    """As a recipe writes it: the name alone where no option differs from its default."""
    options = start.model_dump(mode="json", exclude_defaults=True)
    return {"name": start.kind, **options} if options else start.kind


def of_peft(config: Mapping[str, Any]) -> tuple[Init | None, list[str]]:
    """The start that a PEFT config asks for before training, None where there is none like it, and the complaints."""
    named = str(config.get("init_lora_weights", True))
    for kind in STARTS.values():
        try:
            start, problems = kind.of_peft(named, config)
        except ValidationError as error:
            return kind.model_construct(), [f"{kind.kind}: {told}" for told in by_field(error)]
        if start is not None:
            return start, problems
    return None, []


Start = Annotated[Init, PlainValidator(parsed), PlainSerializer(spelled)]
"""The field `init` of a method: a name, or a name with options."""

__all__ = [
    "EVA",
    "STARTS",
    "Beside",
    "Gaussian",
    "Init",
    "Kaiming",
    "LoRAGA",
    "LoftQ",
    "Moved",
    "Near",
    "OLoRA",
    "PiSSA",
    "Start",
    "of_peft",
]
