"""Models of transformers whose linears are quantised as they are read: beside what is kept, one weight is dense.

transformers builds the model without weights.  It renames and converts each tensor of the checkpoint as its family
needs, and hands those that a quantiser asks for to its operation, which puts a QuantisedLinear in the linear's place.
"""

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from torch import Tensor

from lorica.models.freed import give_back
from lorica.models.heads import head_modules
from lorica.models.quantised import Quantisation, put, quantisable
from lorica.models.stored import Entry, Stored

METHOD = "lorica"
"""The name under which transformers knows the quantiser."""


@dataclass(frozen=True)
class Unread:
    """A stored tensor whose bytes are read when a slice of it is asked for, by `pread` and not through a memory map."""

    entry: Entry

    def __getitem__(self, part: Any) -> Tensor:
        return self.entry.tensor()[part]


def unread(stored: Stored) -> dict[str, Unread]:
    """The `state_dict` to load from."""
    return {name: Unread(entry) for name, entry in stored.entries.items()}


@cache
def _config_class() -> Any:
    """Made when a model is first loaded so: transformers is not imported before."""
    auto = import_module("transformers.quantizers.auto")
    operation = import_module("transformers.core_model_loading").ConversionOps
    quantizer = import_module("transformers.quantizers.base").HfQuantizer
    mixin = import_module("transformers.utils.quantization_config").QuantizationConfigMixin

    @auto.register_quantization_config(METHOD)
    class Config(mixin):
        quant_method = METHOD

        def __init__(self, form: Quantisation, head: bool) -> None:
            self.form, self.head = form, head

    class Quantise(operation):
        def __init__(self, owner: Any) -> None:
            self.owner = owner

        def convert(self, input_dict: Any, *, model: Any, missing_keys: set[str], **unused: Any) -> dict[str, Any]:
            return dict(item for item in input_dict.items() if not self.owner.takes(model, *item, missing_keys))

    @auto.register_quantizer(METHOD)
    class Quantizer(quantizer):
        is_serializable, is_trainable = False, True

        def preprocess_model(self, model: Any, **unused: Any) -> None:
            if self.quantization_config.head:
                model.head_modules = head_modules(model)
            tied = {name for pair in model.all_tied_weights_keys.items() for name in pair}
            self.names = {f"{name}.weight" for name in quantisable(model)} - tied

        def param_needs_quantization(self, model: Any, param_name: str, **unused: Any) -> bool:
            return param_name in self.names

        def get_quantize_ops(self) -> Any:
            return Quantise(self)

        def takes(self, model: Any, name: str, value: Any, missing: set[str]) -> bool:
            """Whether a weight was put in its place; one of another shape is left to be told."""
            W: Tensor = value[0] if isinstance(value, list) else value
            linear = name.removesuffix(".weight")
            if name not in self.names or W.shape != model.get_parameter(name).shape:
                self.names.discard(name)
                return False
            put(model, linear, self.quantization_config.form.store(W))
            model.get_submodule(linear)._is_hf_initialized = True
            missing.discard(name)
            give_back()
            return True

        def postprocess_model(self, model: Any, **unused: Any) -> None:
            """The model is none of a library's quantised ones, which would not be trained or saved."""
            del model.hf_quantizer, model.config.quantization_config

    return Config


def quantising(form: Quantisation, *, head: bool) -> Any:
    """The `quantization_config` with which `from_pretrained` stores the linears so; `head`: the model has one of a
    task, which stays dense."""
    return _config_class()(form, head)
