"""Methods: one file each, with its equation on the first screen.  METHODS is the vocabulary of recipes."""

from typing import Any

from lorica.errors import AdapterError
from lorica.methods.contract import Method
from lorica.methods.full import Full
from lorica.methods.head import HeadOnly
from lorica.methods.lora import LoRA
from lorica.methods.trainable_tokens import TrainableTokens

METHODS: dict[str, type[Method]] = {method.kind: method for method in (LoRA, Full, HeadOnly, TrainableTokens)}


def method_of_peft(peft_type: Any) -> type[Method]:
    """The method that PEFT's files and configs call by this name.  AdapterError naming those that are known."""
    known = {method.peft_type: method for method in METHODS.values() if method.peft_type is not None}
    name = getattr(peft_type, "value", peft_type)
    if not isinstance(name, str) or name not in known:
        raise AdapterError(f"peft_type {name!r} is not known here; it reads {', '.join(sorted(known))}")
    return known[name]


__all__ = ["METHODS", "Full", "HeadOnly", "LoRA", "Method", "TrainableTokens", "method_of_peft"]
