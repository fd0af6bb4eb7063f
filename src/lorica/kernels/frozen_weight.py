"""FrozenWeight: a weight that is read and never written, whatever form it is stored in.

Dense now; quantised forms dequantise into one shared workspace.  Autograd saves the FrozenWeight, never its tensor.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class FrozenWeight:
    """W (d_out, d_in), stored dense.  `transposed` says that `stored` is (d_in, d_out).

    Of a convolution or of experts, W has their shape; only `dense` has a meaning there.
    """

    stored: Tensor
    transposed: bool = False

    @classmethod
    def of(cls, module: nn.Module) -> "FrozenWeight":
        """The weight of a Linear, of an Embedding (rows, d), of transformers' Conv1D or of a convolution."""
        weight = module.weight
        assert isinstance(weight, Tensor)
        return cls(weight.detach(), transposed=type(module).__name__ == "Conv1D")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.dense().shape)

    def dense(self) -> Tensor:
        """W itself (d_out, d_in), a view when it is stored dense."""
        return self.stored.mT if self.transposed else self.stored

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (..., d_in) -> x W^T + bias (..., d_out), a new tensor, to the bit what the base's own module gives.

        The sum inside a matrix product rounds once less than a product and a sum.
        """
        if not self.transposed:
            return nn.functional.linear(x, self.stored, bias)
        if bias is None:
            return x @ self.stored
        return torch.addmm(bias, x.reshape(-1, x.shape[-1]), self.stored).view(*x.shape[:-1], self.stored.shape[1])

    def transposed_product(self, g: Tensor, onto: Tensor | None = None) -> Tensor:
        """g (..., d_out) -> g W (..., d_in); added to `onto`, in place, where it is given."""
        return g @ self.dense() if onto is None else onto.addmm_(g, self.dense())
