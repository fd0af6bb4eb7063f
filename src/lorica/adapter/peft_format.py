"""adapter_config.json: what PEFT, vLLM and others read of an adapter.

A method that PEFT has writes PEFT's entries; one that it lacks, or several together, are listed under `methods` and
write no `peft_type`, so that nothing takes the file for what it is not.
"""

from collections.abc import Collection
from typing import Any

from torch import nn

from lorica.adapter.plan import Plan
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
    config = _method_entries(plan)
    saved = config.get("modules_to_save") or ()
    return {
        **config,
        "task_type": task_type(model, saved),
        "base_model_name_or_path": base_name(model),
        "auto_mapping": None,
        "revision": None,
        "inference_mode": True,
    }


def _method_entries(plan: Plan) -> dict[str, Any]:
    only = plan.methods[0]
    edits = plan.of(only)
    entries = None
    if len(plan.methods) == 1 and not only.peft_problems(edits):
        entries = only.peft_config(edits, plan.base)
    if entries is not None:
        return entries
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
