"""Linears of a base whose weights are stored quantised.  Embeddings, norms, biases and heads stay as they are.

nf4, fp4   0.5 byte a number and its scales: 4.5 bits, doubly quantised 4.127
int8       1 byte a number and 4 a row
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor, nn

from lorica.errors import ModelError, did_you_mean
from lorica.kernels.quantised import EightBit, Form, Quantised, blank, held_by, quantised, tensors_of, with_tensors
from lorica.models import frozen_linear
from lorica.models.freed import give_back
from lorica.models.frozen_linear import FrozenLinear
from lorica.models.tiled_linear import is_plain

PACKS = "support_avx512bf16_for_cpu"
"""The attribute of bitsandbytes' Linear4bit that lets its forward pack the weight."""


@dataclass(frozen=True, kw_only=True)
class Quantisation:
    """How the linears of a base are stored; `double` says that their scales are quantised too."""

    form: Form
    double: bool = False

    @classmethod
    def of(cls, quantize: str | None, double_quant: bool = False) -> "Quantisation | None":
        """From the words of a recipe.  ModelError where they name no form."""
        if quantize is None:
            if double_quant:
                raise ModelError("double_quant: is of quantize: nf4; say both, or neither")
            return None
        if quantize not in get_args(Form):
            near = did_you_mean(quantize, get_args(Form)) or f"; it takes {', '.join(get_args(Form))}"
            raise ModelError(f"quantize: {quantize!r} is no form that weights are stored in{near}")
        if quantize == "int8" and double_quant:
            raise ModelError("double_quant: the scales of int8 are a number a row, which nothing is gained by")
        return cls(form=quantize, double=double_quant)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, Any]:
        return {"quantize": self.form, "double_quant": self.double}

    def __str__(self) -> str:
        return f"{self.form}, doubly quantised" if self.double else self.form

    def store(self, W: Tensor) -> Quantised:
        """W (d_out, d_in), in the type that products are computed in."""
        return quantised(W, self.form, self.double)

    def blank(self, shape: tuple[int, int], dtype: torch.dtype) -> Quantised:
        return blank(shape, dtype, self.form, self.double)


class QuantisedLinear(FrozenLinear):
    """Its buffers are bytes whatever they hold, so that no cast of the model reaches them."""

    stored_as = "quantised"

    def __init__(self, stored: Quantised, bias: nn.Parameter | None = None) -> None:
        super().__init__(stored.shape, bias)
        tensors = tensors_of(stored)
        self._kinds = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
        self._form = with_tensors(stored, {name: tensor.to("meta") for name, tensor in tensors.items()})
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.reshape(-1).view(torch.uint8))

    def quantised_weight(self) -> Quantised:
        held = {name: getattr(self, name).view(dtype).view(shape) for name, (dtype, shape) in self._kinds.items()}
        return with_tensors(self._form, held)

    def frozen_weight(self) -> Quantised:
        return self.quantised_weight()

    def _apply(self, fn: Any, recurse: bool = True) -> "QuantisedLinear":
        """A cast changes what products are computed in."""
        super()._apply(fn, recurse)
        self._form = replace(self._form, kind=fn(torch.empty(0, dtype=self._form.kind)).dtype)
        return self

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, stored={self._form.form}"


def put(model: nn.Module, name: str, stored: Quantised) -> None:
    """In place of the linear `name`, the same with its weight so stored."""
    bias: Any = model.get_submodule(name).bias
    frozen_linear.put(model, name, QuantisedLinear(stored, bias))


def quantise(model: nn.Module, form: Quantisation) -> None:
    """Every linear that is `quantisable` and not stored so yet, one after another; on the meta device shapes alone."""
    names = quantisable(model)
    if not names and quantisation_of(model) is None:
        raise ModelError(f"quantize: {type(model).__name__} has no linear that can be stored as {form}; leave it out")
    for name in names:
        linear: Any = model.get_submodule(name)
        W = linear.weight.detach()
        if W.is_meta:
            with torch.device("meta"):
                put(model, name, form.blank(tuple(W.shape), W.dtype))
        else:
            put(model, name, form.store(W))
            give_back()


def unpacked(model: nn.Module) -> Callable[[], None]:
    """From now on no linear of bitsandbytes packs its weight anew for a CPU; the undo lets them again.

    Packing is in place, in the first evaluation, and rounds the scales: nothing that was trained would fit it.
    """
    asked: list[Any] = [module for module in model.modules() if hasattr(module, PACKS)]
    before = [getattr(module, PACKS) for module in asked]
    for module in asked:
        setattr(module, PACKS, False)

    def undo() -> None:
        for module, value in zip(asked, before, strict=True):
            setattr(module, PACKS, value)

    return undo


def adopt(model: Any, dtype: torch.dtype) -> None:
    """Linears of bitsandbytes become ours, on the same tensors, and compute in `dtype`; the model then is none of its
    library's quantised ones, which would not be trained or saved."""
    for name, module in list(model.named_modules()):
        held = None if isinstance(module, QuantisedLinear) or not isinstance(module, nn.Linear) else held_by(module)
        if held is not None:
            put(model, name, replace(held, kind=dtype))
    for name in ("hf_quantizer", "quantization_method", "is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        if name in vars(model):
            delattr(model, name)
    model._weight_conversions = None
    forget_stated(model.config)


def forget_stated(config: Any) -> None:
    """A config says no more that weights are stored quantised."""
    if hasattr(config, "quantization_config"):
        del config.quantization_config


def quantisable(model: nn.Module) -> tuple[str, ...]:
    """Linears by name.  Not the head, which answers; nor what is tied, kept in float32 by its family, or read by
    another module."""
    kept = (*(getattr(model, "_keep_in_fp32_modules", None) or ()), *_heads(model))
    return tuple(name for name, module in _linears(model) if not _is_kept(name, kept) and _is_even(module))


def _linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Of a type whose forward is known, whose weight has one name, and outside of what reads weights of others."""
    names: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)] = names.get(id(parameter), 0) + 1
    readers = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention))
    for name, module in model.named_modules():
        if is_plain(module) and names[id(module.weight)] == 1 and not name.startswith(readers):
            yield name, module


def _heads(model: Any) -> tuple[str, ...]:
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    names = [name for name, module in model.named_modules() if output is not None and module is output]
    return (*names, *getattr(model, "head_modules", ()), "lm_head")


def _is_kept(name: str, kept: tuple[str, ...]) -> bool:
    return any(name == each or name.startswith(f"{each}.") or name.endswith(f".{each}") for each in kept)


def _is_even(module: nn.Linear) -> bool:
    """Two numbers share a byte, and bitsandbytes' fast reading goes row by row."""
    return module.in_features % 2 == 0


def quantisation_of(model: nn.Module) -> Quantisation | None:
    """How a base is stored, whoever quantised it; None where its linears are dense."""
    for module in model.modules():
        held = held_by(module) if isinstance(module, nn.Linear) else None
        if held is not None:
            double = not isinstance(held, EightBit) and held.double
            return Quantisation(form=held.form, double=double)
    return None


def plain_linear(before: nn.Linear, W: Tensor) -> nn.Linear:
    """The same with a dense weight W (d_out, d_in)."""
    kind = before.plain if isinstance(before, FrozenLinear) else nn.Linear
    after = kind(before.in_features, before.out_features, bias=False, device="meta")
    after.weight, after.bias = nn.Parameter(W, requires_grad=False), before.bias
    after.training = before.training
    return after
