"""FrozenWeight: a weight that is read and never written, whatever form it is stored in.

DenseWeight here, TiledWeight in `tiled.py`, FourBit and EightBit in `quantised.py`, Fetched in `fetched.py`.  Autograd
saves the FrozenWeight, never its tensor: a quantised one is made dense where a product reads it and let go of after it,
so that one at a time is dense.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorica.kernels.native.linears import Codes


class FrozenWeight(ABC):
    """W (d_out, d_in).  Of a convolution or of experts, W has their shape; only `dense` has a meaning there."""

    @staticmethod
    def of(module: nn.Module) -> "FrozenWeight":
        """The weight of a Linear, however it is stored, of an Embedding (rows, d), of transformers' Conv1D or of a
        convolution.  ModelError where it is held in a form that cannot be read."""
        weight: Any = module._parameters.get("weight")
        if type(weight) is not nn.Parameter:
            from lorica.kernels.quantised import held_by

            own: Any = getattr(module, "frozen_weight", None)
            held = held_by(module) if own is None else own()
            if held is not None:
                return held
            weight = module.weight
        stored = weight.detach() if weight.requires_grad else weight
        if (form := getattr(type(module), "weight_form", None)) is not None:
            return form(stored)
        return DenseWeight(stored, transposed=type(module).__name__ == "Conv1D")

    @property
    def tiled(self) -> bool:
        """Whether its products are those of `tiled.py`, where they fit."""
        return False

    def for_tiles(self) -> Tensor | Codes:
        """W as those products read it."""
        return self.as_read(self.dtype)

    @property
    def at_hand(self) -> bool:
        """Whether it lies on the device as products read it, so that several may be read together."""
        return False

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]: ...

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The type that products are computed in."""

    @property
    @abstractmethod
    def device(self) -> torch.device: ...

    @abstractmethod
    def dense(self) -> Tensor:
        """W itself in `dtype`: a view when it is stored dense, else a new tensor."""

    def as_read(self, dtype: torch.dtype) -> Tensor:
        """W in the type of what it is multiplied with, for one product: on a CPU the next quantised weight that this
        thread reads takes its place."""
        return self.dense().to(dtype)

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (..., d_in) -> x W^T + bias (..., d_out), a new tensor, to the bit what the base's own module gives."""
        return nn.functional.linear(x, self.as_read(x.dtype), bias)

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`product` under autograd, which keeps nothing that is made for it."""
        return _Linear.apply(x, bias, self)  # type: ignore[return-value]

    def transposed_product(self, g: Tensor, onto: Tensor | None = None) -> Tensor:
        """g (..., d_out) -> g W (..., d_in); added to `onto`, in place, where it is given."""
        W = self.as_read(g.dtype)
        return g @ W if onto is None else onto.addmm_(g, W)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bias, weight):  # type: ignore[override]
        ctx.weight = weight
        return weight.product(x, bias)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        wants_x, wants_bias, _ = ctx.needs_input_grad
        grad_x = ctx.weight.transposed_product(grad) if wants_x else None
        return grad_x, grad.flatten(0, -2).sum(0) if wants_bias else None, None


@dataclass(frozen=True, eq=False)
class DenseWeight(FrozenWeight):
    """`transposed` says that `stored` is (d_in, d_out)."""

    stored: Tensor
    transposed: bool = False

    @property
    def at_hand(self) -> bool:
        return True

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.dense().shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.stored.dtype

    @property
    def device(self) -> torch.device:
        return self.stored.device

    def dense(self) -> Tensor:
        return self.stored.mT if self.transposed else self.stored

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """The sum inside a matrix product rounds once less than a product and a sum."""
        if not self.transposed:
            return nn.functional.linear(x, self.stored, bias)
        if bias is None:
            return x @ self.stored
        return torch.addmm(bias, x.reshape(-1, x.shape[-1]), self.stored).view(*x.shape[:-1], self.stored.shape[1])

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return self.product(x, bias)

    def transposed_product(self, g: Tensor, onto: Tensor | None = None) -> Tensor:
        return g @ self.dense() if onto is None else onto.addmm_(g, self.dense())
