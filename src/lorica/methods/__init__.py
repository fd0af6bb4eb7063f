"""Methods: one file each, with its equation on the first screen.  METHODS is the vocabulary of recipes."""

from typing import Any

from lorica.errors import AdapterError
from lorica.methods import peft_config
from lorica.methods.adalora import AdaLoRA
from lorica.methods.bitfit import BitFit
from lorica.methods.bottleneck import Bottleneck
from lorica.methods.contract import Method
from lorica.methods.dora import DoRA
from lorica.methods.full import Full
from lorica.methods.head import HeadOnly
from lorica.methods.hira import HiRA
from lorica.methods.ia3 import IA3
from lorica.methods.loha import LoHa
from lorica.methods.lokr import LoKr
from lorica.methods.lora import LoRA
from lorica.methods.lora_fa import LoRAFA
from lorica.methods.multilora import MultiLoRA
from lorica.methods.norm import Norm
from lorica.methods.p_tuning import PTuning
from lorica.methods.p_tuning_v2 import PTuningV2
from lorica.methods.prefix import Prefix
from lorica.methods.prompt import Prompt
from lorica.methods.trainable_tokens import TrainableTokens
from lorica.methods.vera import VeRA

METHODS: dict[str, type[Method]] = {
    method.kind: method
    for method in (
        LoRA,
        Full,
        AdaLoRA,
        BitFit,
        Bottleneck,
        DoRA,
        HeadOnly,
        HiRA,
        IA3,
        LoHa,
        LoKr,
        LoRAFA,
        MultiLoRA,
        Norm,
        Prefix,
        Prompt,
        PTuning,
        PTuningV2,
        TrainableTokens,
        VeRA,
    )
}


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
    told = [method for method in meant if method.kind == fields.get(peft_config.OWN_NAME)]
    return next(iter(told), None) or next((method for method in meant if method.is_meant(fields)), meant[0])


__all__ = [
    "IA3",
    "METHODS",
    "AdaLoRA",
    "BitFit",
    "Bottleneck",
    "DoRA",
    "Full",
    "HeadOnly",
    "HiRA",
    "LoHa",
    "LoKr",
    "LoRA",
    "LoRAFA",
    "Method",
    "MultiLoRA",
    "Norm",
    "PTuning",
    "PTuningV2",
    "Prefix",
    "Prompt",
    "TrainableTokens",
    "VeRA",
    "method_of_peft",
]
