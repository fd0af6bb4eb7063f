"""Lengths of the rows of W + s B A, with no matrix of W's size made for them.

    n^2 = |W|^2 + 2 s sum_r (W A^T) o B + s^2 sum_r (B (A A^T)) o B        row by row: n (d_out,), W (d_out, d_in)

|W|^2 is given (`row_squares`), since W is frozen.  Sums are made in float32 or better whatever W is stored in.
The Gram form of DoRA's norm (Liu et al. 2024, arXiv:2402.09353, equation 5).
"""

import torch
from torch import Tensor

from lorica.kernels.choice import is_native
from lorica.kernels.frozen_weight import FrozenWeight
from lorica.kernels.native import row_norms as native

PIECE = 1 << 19
"""Elements of W that are widened at a time, 2 MB in float32."""


def row_squares(weight: FrozenWeight, wide: torch.dtype = torch.float32) -> Tensor:
    """|W|^2 of each row, (d_out,), in `wide`."""
    if weight.device.type == "meta":  # torch would decompose each operator in Python, 1 ms a layer
        return torch.empty(weight.shape[0], dtype=wide, device="meta")
    return torch.linalg.vector_norm(weight.as_read(weight.dtype), dim=1, dtype=wide).square()


@torch.no_grad()
def row_norms(weight: FrozenWeight, squares: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """n (d_out,) in the type of `squares`, without gradient.  With a zero B it is the root of `squares` to the bit."""
    if squares.is_meta:
        return torch.empty_like(squares)
    A, B, W = A.to(squares.dtype), B.to(squares.dtype), weight.as_read(weight.dtype)
    if squares.dtype == torch.float32 and is_native("row_norms", W):
        return native.norms(W, squares, A, B, scale)
    crossed = (_wide_product(W, A) * B).sum(1)
    update = ((B @ (A @ A.T)) * B).sum(1)
    # where the update cancels a row, rounding can leave less than nothing of it
    return (squares + 2 * scale * crossed + scale**2 * update).clamp_(min=0).sqrt_()


def _wide_product(W: Tensor, A: Tensor) -> Tensor:
    """W A^T (d_out, r) in A's type."""
    if W.dtype == A.dtype:
        return W @ A.T
    rows = max(1, PIECE // max(1, W.shape[1]))
    return torch.cat([part.to(A.dtype) @ A.T for part in W.split(rows)])


def reference(weight: FrozenWeight, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """The same from the dense sum."""
    return (weight.dense() + scale * B @ A).norm(dim=1)
