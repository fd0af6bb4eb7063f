# pyright: reportMissingImports=false, reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
"""Lengths of the rows of W + s B A, with W read once in the type it is stored in.

    n^2 = |W|^2 + 2 s sum_r (W A^T) o B + s^2 sum_r (B (A A^T)) o B        row by row: n (d_out,), W (d_out, d_in)

|W|^2 is given, since W is frozen; A, B and all sums are float32.  Liu et al. 2024, arXiv:2402.09353, equation 5.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lorica.kernels.frozen_weight import FrozenWeight
from lorica.kernels.triton.tiles import LEAST, Tile, covering, parts

TILE = Tile(rows=64, columns=0, inner=64)


@torch.no_grad()
def row_norms(weight: FrozenWeight, squares: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """n (d_out,) float32, without gradient.  With a zero B it is the root of `squares` to the bit."""
    W, A, B = weight.dense(), A.float(), B.float()
    (rows, inner), rank = W.shape, A.shape[0]
    norms = torch.empty(rows, dtype=torch.float32, device=W.device)
    gram = B @ (A @ A.T)
    _norms[(parts(rows, TILE.rows),)](
        W, A, B, gram, squares, norms, rows, inner, rank, scale, *W.stride(), *A.stride(), *B.stride(),
        *gram.stride(), RANK=covering(rank, LEAST), ROWS=TILE.rows, INNER=TILE.inner,
        num_warps=TILE.warps, num_stages=TILE.stages,
    )  # fmt: skip
    return norms.sqrt_()


@triton.jit
def _tile(ptr, row, column, rows, columns, by_row, by_column):
    """The elements at row (R,) and column (C,) of a (rows, columns) matrix in float32, zero outside it."""
    at = row[:, None].to(tl.int64) * by_row + column[None, :].to(tl.int64) * by_column
    return tl.load(ptr + at, mask=(row < rows)[:, None] & (column < columns)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _norms(
    w_ptr, a_ptr, b_ptr, gram_ptr, squares_ptr, squared_ptr, rows, inner, rank, scale,
    w_row, w_inner, a_rank, a_inner, b_row, b_rank, gram_row, gram_rank,
    RANK: tl.constexpr, ROWS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    r = tl.arange(0, RANK)
    product = tl.zeros((ROWS, RANK), dtype=tl.float32)
    for start in range(0, inner, INNER):
        k = start + tl.arange(0, INNER)
        w = _tile(w_ptr, row, k, rows, inner, w_row, w_inner)
        a = _tile(a_ptr, k, r, inner, rank, a_inner, a_rank)
        product = tl.dot(w, a, product, input_precision="ieee")
    b = _tile(b_ptr, row, r, rows, rank, b_row, b_rank)
    crossed = tl.sum(product * b, 1)
    update = tl.sum(_tile(gram_ptr, row, r, rows, rank, gram_row, gram_rank) * b, 1)
    squares = tl.load(squares_ptr + row, mask=row < rows, other=0.0)
    # where the update cancels a row, rounding can leave less than nothing of it
    squared = tl.maximum(squares + 2.0 * scale * crossed + scale * scale * update, 0.0)
    tl.store(squared_ptr + row, squared, mask=row < rows)
