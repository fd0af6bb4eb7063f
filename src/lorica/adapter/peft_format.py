"""adapter_config.json: what PEFT, vLLM and others read of an adapter.

A method that PEFT has writes PEFT's entries; one that it lacks, or several together, are listed under `methods` and
write no `peft_type`, so that nothing takes the file for what it is not.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from lorica.adapter.plan import Plan
from lorica.methods import Method, peft_parts
from lorica.methods.peft_config import HEADS

TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "CausalLM": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}


def config_of(model: nn.Module, plan: Plan) -> dict[str, Any]:
    """The contents of adapter_config.json."""
    config = _method_entries(model, plan)
    return {**config, **_always(base_name(model), task_type(model, config.get("modules_to_save") or ()))}


def config_without_base(
    plan: Plan, *, peft: bool, base: str | None, task: str | None, transposed: bool
) -> dict[str, Any]:
    """The same where no base is at hand, and only the sites that are adapted are known: each by its full path.

    peft        whether PEFT computes what the plan says, as far as only the base could tell
    transposed  whether adapted layers store their weight as (d_in, d_out)
    """
    (only,) = plan.methods
    edits = plan.of(only)
    entries = None if only.peft_problems(edits) or not peft else only.peft_config(edits, plan.base)
    config = (
        _own_entries(plan) if entries is None else {**entries, **_by_full_paths(plan), "fan_in_fan_out": transposed}
    )
    return {**config, **_always(base, task)}


def _by_full_paths(plan: Plan) -> dict[str, Any]:
    """A short name would choose layers as well of which nothing is known; one without a dot, whatever ends so."""
    adapted = [planned.site for planned in plan.edits]
    names = sorted(site.name for site in peft_parts.as_modules(adapted))
    experts = [site.name for site in adapted if site.kind == "experts"]
    plain = all("." in name for name in names)
    targets: Any = names if plain else "|".join(map(re.escape, names))
    return {"target_modules": targets, **({"target_parameters": experts} if experts else {})}


def _always(base: str | None, task: str | None) -> dict[str, Any]:
    return {
        "task_type": task,
        "base_model_name_or_path": base,
        "auto_mapping": None,
        "revision": None,
        "inference_mode": True,
    }


def _method_entries(model: nn.Module, plan: Plan) -> dict[str, Any]:
    only = plan.methods[0]
    edits = plan.of(only)
    entries = None
    if len(plan.methods) == 1 and not only.peft_problems(edits):
        entries = only.peft_config(edits, plan.base)
    if entries is not None and _computes_the_same(model, only, entries):
        return entries
    return _own_entries(plan)


def _computes_the_same(model: nn.Module, method: Method, entries: Mapping[str, Any]) -> bool:
    return method.peft_tasks is None or task_type(model, entries.get("modules_to_save") or ()) in method.peft_tasks


def _own_entries(plan: Plan) -> dict[str, Any]:
    """What says which adapter it is where PEFT has no such."""
    listed = {"methods": [{"name": method.kind, **method.model_dump(mode="json")} for method in plan.methods]}
    experts = [p.site.name for p in plan.edits if p.edit.place == "around" and p.site.kind == "experts"]
    return {**listed, "target_parameters": experts} if experts else listed


def base_name(model: nn.Module) -> str | None:
    """Where the base came from: what `load_base` was given, or the name that transformers keeps."""
    named = getattr(model, "source", None) or getattr(model, "name_or_path", None)
    return named if isinstance(named, str) and named else None


def task_type(model: nn.Module, saved: Collection[str]) -> str | None:
    """PEFT's name of the task, None where PEFT would then expect a trained head that this adapter leaves alone, or
    token ids that the model does not take (Whisper)."""
    if getattr(model, "main_input_name", "input_ids") != "input_ids":
        return None
    name = type(model).__name__
    task = next((task for ending, task in TASKS.items() if name.endswith(ending)), None)
    if name.endswith("ForConditionalGeneration") and getattr(getattr(model, "config", None), "is_encoder_decoder", 0):
        task = "SEQ_2_SEQ_LM"
    heads = [path for path, _ in model.named_modules() if path.endswith(HEADS.get(task or "", ("\0",)))]
    return task if all(any(path.endswith(name) for name in saved) for path in heads) else None
