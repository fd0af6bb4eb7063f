"""The linear of bases that we load: nn.Linear, with products of our own where this processor has them."""

from typing import TypeGuard

from torch import Tensor, nn

from lorica.kernels import TiledWeight, tiled_linear


class TiledLinear(nn.Linear):
    """y = x W^T + b, to the bit as the same weight gives with an adapter beside it that changes nothing."""

    weight_form = TiledWeight

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return tiled_linear(x, self.weight, self.bias)


def is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Of a type whose forward is known; isinstance would say so of an edited one as well."""
    return type(module) in (nn.Linear, TiledLinear)


def use(model: nn.Module) -> None:
    """Every linear of a model that transformers made becomes one."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = TiledLinear
