"""What a config of PEFT may say, read without executing any of it.

A field is translated, harmless (it says who wrote the file), or understood only at its default: every other field with
a value of its own is refused by name, since to ignore it would be to compute something else.  Keys of rank and alpha
patterns are literal names here: PEFT would run them as regular expressions, `re.match(rf"(.*\\.)?({key})$", module)`.
"""

import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import asdict, is_dataclass
from types import MappingProxyType
from typing import Any

from lorica.errors import RecipeError
from lorica.methods.targets import matches

OWN_NAME = "lorica_method"
"""Under which the name of a method that PEFT takes for another is added to its config, once that is read."""
HARMLESS = frozenset(
    {
        OWN_NAME,
        "peft_type",
        "task_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "fan_in_fan_out",
        "megatron_core",
        "qalora_group_size",
        "layers_pattern",
        "runtime_config",
        "enable_lora",
        "merge_weights",
    }
)
"""`fan_in_fan_out` is read off the layer, `auto_mapping` names code to import, the rest is provenance or a default."""
WHERE_TO_ADAPT = frozenset({"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"})
HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}
"""Modules that PEFT trains and saves whole for these tasks, whether asked or not."""
LITERAL = re.compile(r"[\w.\-]+")
MERGE = "leave it out, or merge a finished adapter into its base with PEFT's merge_and_unload"
REMEDIES = {
    "ensure_weight_tying": "set it to false: a finished adapter computes the same, and trains embedding and head apart",
}


def fields(config: Any) -> dict[str, Any]:
    """The fields of a PEFT config object, or of a dict that holds them."""
    if isinstance(config, Mapping):
        return dict(config)
    if is_dataclass(config) and not isinstance(config, type):
        return asdict(config)
    raise RecipeError(f"from_peft takes a PEFT config or a dict of its fields, not {type(config).__name__}")


def of_family(config: Any, family: str | None, names: Collection[str]) -> dict[str, Any]:
    """The fields, with the targets that PEFT chooses for this family of transformers where the config names none: its
    tables are those of the package that the config object is of, and may name layers that are not among `names`."""
    given = fields(config)
    tables = sys.modules.get(f"{type(config).__module__.partition('.')[0]}.utils.constants")
    method = getattr(given.get("peft_type"), "value", given.get("peft_type"))
    for field in ("target_modules", "feedforward_modules"):
        table = f"TRANSFORMERS_MODELS_TO_{method}_{field.upper()}_MAPPING"
        chosen = getattr(tables, table, {}).get(family)
        if chosen is not None and given.get(field, chosen) is None:
            given[field] = [end for end in chosen if any(matches(name, end) for name in names)]
    return given


def problems(
    config: Mapping[str, Any], understood: Collection[str], remedies: Mapping[str, str] = MappingProxyType({})
) -> list[str]:
    """Every field that is neither understood nor harmless and whose value is not a default, with what to do instead."""
    unknown = [name for name in config if name not in understood and name not in HARMLESS]
    known = {**REMEDIES, **remedies}
    return [
        f"{name}: {config[name]!r} has no counterpart here; {known.get(name, MERGE)}"
        for name in sorted(unknown)
        if _says(config[name])
    ]


def _says(value: Any) -> bool:
    return value is not None and value is not False and value not in ("", {}, [], (), set())


def heads(config: Mapping[str, Any], modules: Collection[str]) -> tuple[str, ...]:
    """What PEFT adds to `modules_to_save` for the task of the config, of the modules that there are."""
    return tuple(name for name in _heads(config) if any(matches(module, name) for module in modules))


def lacks_head(config: Mapping[str, Any]) -> bool:
    """Whether the head that PEFT would train for the task of the config is named nowhere in it."""
    return bool(_heads(config)) and not config.get("modules_to_save")


def _heads(config: Mapping[str, Any]) -> tuple[str, ...]:
    task = config.get("task_type")
    return HEADS.get(str(getattr(task, "value", task)), ())


def literal_pattern(config: Mapping[str, Any], field: str) -> tuple[dict[str, Any], list[str]]:
    """A rank or alpha pattern, and the complaints about keys that are not plain names."""
    pattern = config.get(field) or {}
    if not isinstance(pattern, Mapping):
        return {}, [f"{field}: expected names and numbers, found {pattern!r}"]
    strange = [key for key in pattern if not LITERAL.fullmatch(str(key))]
    kept = {key: value for key, value in pattern.items() if LITERAL.fullmatch(str(key))}
    remedy = "only names of modules are taken, or their ends after a dot: write those out"
    return kept, [f"{field}: {key!r} is a pattern; {remedy}" for key in strange]


def names(value: Any, field: str) -> tuple[tuple[str, ...], list[str]]:
    """A list of names that PEFT may hold as list, set or None."""
    if value is None:
        return (), []
    if not isinstance(value, list | tuple | set | frozenset) or not all(isinstance(name, str) for name in value):
        return (), [f"{field}: expected a list of names, found {value!r}"]
    return tuple(value if isinstance(value, list | tuple) else sorted(value)), []


def unordered(pattern: Mapping[str, Any], sites: Collection[str]) -> dict[str, Any]:
    """The pattern in a form whose order does not matter, because PEFT sorts keys when it writes: where two keys match
    one site, full names stand in for both."""
    if all(sum(matches(site, key) for key in pattern) <= 1 for site in sites):
        return dict(sorted(pattern.items()))
    chosen = {site: next((value for key, value in pattern.items() if matches(site, key)), None) for site in sites}
    return {site: value for site, value in sorted(chosen.items()) if value is not None}
