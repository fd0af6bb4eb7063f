"""PEFT in a plain training loop: eager or compiled, adapters in float32 (its default) or in the base's own type."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch

from benchmarks.speed.gate import Gate
from benchmarks.speed.lessons import Lessons
from benchmarks.speed.sides.loop import learn
from benchmarks.speed.start import same_start


def run(order: Mapping[str, Any], gate: Gate) -> None:
    model = adapted(order)
    if order.get("liger"):
        with_liger(model)
    filled = same_start((name, p) for name, p in model.named_parameters() if p.requires_grad)
    learn(model.train(), Lessons.read(order["lessons"]), order, gate, filled=filled)


def adapted(order: Mapping[str, Any]) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, order.get("dtype", "bfloat16"))
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": order.get("attention", "sdpa")}
    if order.get("four_bit"):
        options["quantization_config"] = four_bit()
    base = AutoModelForCausalLM.from_pretrained(order["folder"], **options)
    config = LoraConfig(
        r=order["r"],
        lora_alpha=order["alpha"],
        target_modules="all-linear",
        use_dora=order["method"] == "dora",
        task_type="CAUSAL_LM",
    )
    if not order.get("four_bit"):
        base.to(order.get("device", "cpu"))
    return get_peft_model(base, config, autocast_adapter_dtype=order.get("adapter_dtype") != "base")


def four_bit() -> Any:
    """As QLoRA's authors have it: NF4, doubly quantised, computed in bfloat16."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def with_liger(model: Any) -> None:
    """Liger's kernels are for CUDA alone."""
    import_module("liger_kernel.transformers")._apply_liger_kernel_to_instance(model=model.get_base_model())
