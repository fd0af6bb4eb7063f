"""Methods: one file each, with its equation on the first screen.  METHODS is the vocabulary of recipes."""

from typing import Any

from lorica.errors import AdapterError
from lorica.methods import peft_config
from lorica.methods.contract import Method
from lorica.methods.full import Full
from lorica.methods.lora import LoRA
from lorica.methods.trainable_tokens import TrainableTokens

METHODS: dict[str, type[Method]] = {method.kind: method for method in (LoRA, Full, TrainableTokens)}


def method_of_peft(config: Any) -> type[Method]:
    """The method whose adapters have a config of PEFT like this one (an object, or its fields).  AdapterError naming
    those that are known."""
    fields = peft_config.fields(config)
    peft_type = getattr(fields.get("peft_type"), "value", fields.get("peft_type"))
    known = [method for method in METHODS.values() if method.peft_type is not None]
    meant = [method for method in known if method.peft_type == peft_type]
    if not meant:
        names = sorted({str(method.peft_type) for method in known})
        raise AdapterError(f"peft_type {peft_type!r} is not known here; it reads {', '.join(names)}")
    return next((method for method in meant if method.is_meant(fields)), meant[0])


__all__ = ["METHODS", "Full", "LoRA", "Method", "TrainableTokens", "method_of_peft"]
