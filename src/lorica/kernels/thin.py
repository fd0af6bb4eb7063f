"""Products of few long rows with many: what the gradients of A and B are."""

from collections.abc import Sequence

from torch import Tensor

from lorica.kernels.choice import is_native
from lorica.kernels.native import thin as native
from lorica.kernels.native.thin import Thin


def thin_products(given: Sequence[Thin]) -> list[Tensor]:
    """scale * left right (R, N) of each, new tensors: float32 of bfloat16 in C, else of the type that was given."""
    if all(is_native("thin", each.left, each.right) for each in given):
        return native.thin_products(given)
    return [_product(each) for each in given]


def thin_product(left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
    return thin_products([Thin(left, right, scale)])[0]


def _product(each: Thin) -> Tensor:
    made = each.left @ each.right
    made = made if each.scale == 1 else made.mul_(each.scale)
    return made if each.gain is None else made * each.gain.to(made.dtype)
