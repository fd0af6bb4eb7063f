"""Methods: one file each, with its equation on the first screen.  METHODS is the vocabulary of recipes."""

from lorica.methods.contract import Method
from lorica.methods.full import Full
from lorica.methods.lora import LoRA

METHODS: dict[str, type[Method]] = {method.kind: method for method in (LoRA, Full)}

__all__ = ["METHODS", "Full", "LoRA", "Method"]
