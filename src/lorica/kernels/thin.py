"""The product of few long rows with many: what the gradients of A and B are."""

from torch import Tensor

from lorica.kernels.choice import is_native
from lorica.kernels.native import thin as native


def thin_product(left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
    """left (R, T), right (T, N) -> scale times their product (R, N), a new tensor."""
    if is_native("thin", left, right):
        return native.thin_product(left, right, scale)
    made = left @ right
    return made if scale == 1 else made.mul_(scale)
