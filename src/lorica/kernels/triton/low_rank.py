# pyright: reportMissingImports=false, reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
"""The LoRA linear: the low-rank product is added where a tile of the base's product still is in registers.

    m = d A^T        y = x W^T + s m B^T        d = dropout(x)
    n = s dy B       dx = dy W + keep * (n A)        dA = n^T d        dB = s dy^T m

x (T, d_in), W (d_out, d_in), A (r, d_in), B (d_out, r), m and n (T, r).  x and m are kept; d and the mask never exist:
each kernel that needs one draws it.  Hu et al. 2021, arXiv:2106.09685; the split at m is Su et al. 2025,
arXiv:2510.00206.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lorica.kernels.frozen_weight import FrozenWeight
from lorica.kernels.low_rank import LowRank
from lorica.kernels.noise import Noise
from lorica.kernels.triton.dropout import Mask, keep
from lorica.kernels.triton.tiles import LEAST, Tile, covering, operand, parts, warps_of

PRODUCT = Tile(rows=128, columns=128, inner=64, warps=8, stages=3)
THIN = Tile(rows=64, columns=128, inner=64)
"""`columns` of the gradient of A."""
SPLITS = 16
"""Parts of the tokens whose sums for the gradient of A are made side by side."""
DRAWN = ["seed", "step", "site", "threshold", "kept"]
"""A step does not compile the kernels anew."""


def low_rank_linear(
    x: Tensor, weight: FrozenWeight, bias: Tensor | None, low_rank: LowRank, noise: Noise | None = None
) -> Tensor:
    """`kernels.low_rank.reference` of a plain LowRank and a frozen bias.  x (..., d_in) -> (..., d_out)."""
    A, B = low_rank.A.to(x.dtype), low_rank.B.to(x.dtype)
    drops = noise is not None and low_rank.dropout > 0
    mask = Mask.of(noise, low_rank.dropout, low_rank.site, x) if noise is not None and drops else None
    return _Fused.apply(x, A, B, low_rank.scale, weight, bias, mask)  # type: ignore[return-value]


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, A, B, scale, weight, bias, mask):  # type: ignore[override]
        flat = x.reshape(-1, x.shape[-1])
        middle = thin_product(flat, A.T, 1.0, mask)
        y = product(flat, weight.dense().T, bias, middle, B.T, scale, None)
        ctx.save_for_backward(flat, middle, A, B)
        ctx.scale, ctx.weight, ctx.mask, ctx.shape = scale, weight, mask, x.shape
        return y.view(*x.shape[:-1], B.shape[0])

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        flat, middle, A, B = ctx.saved_tensors
        wants_x, wants_A, wants_B = ctx.needs_input_grad[:3]
        dy = grad.reshape(-1, grad.shape[-1])
        inner = thin_product(dy, B, ctx.scale, None)
        grad_x = product(dy, ctx.weight.dense(), None, inner, A, 1.0, ctx.mask).view(ctx.shape) if wants_x else None
        grad_A = _gradient_of_A(inner, flat, ctx.mask) if wants_A else None
        grad_B = (middle.T @ dy).mul_(ctx.scale).T if wants_B else None
        return grad_x, grad_A, grad_B, None, None, None, None


def product(x: Tensor, w: Tensor, bias: Tensor | None, u: Tensor, v: Tensor, scale: float, mask: Mask | None) -> Tensor:
    """x w + bias + scale * keep * (u v), (T, n), for x (T, k), w (k, n), u (T, r), v (r, n), in any strides."""
    (tokens, inner), (rank, columns) = x.shape, v.shape
    y = x.new_empty(tokens, columns)
    grid = (parts(tokens, PRODUCT.rows), parts(columns, PRODUCT.columns))
    _product[grid](
        x, w, bias, u, v, y, tokens, columns, inner, rank, scale, *_words(mask),
        *x.stride(), *w.stride(), *u.stride(), *v.stride(),
        DROPS=mask is not None, RANK=covering(rank, LEAST), TYPE=operand(x),
        ROWS=PRODUCT.rows, COLUMNS=PRODUCT.columns, INNER=PRODUCT.inner,
        num_warps=PRODUCT.warps, num_stages=PRODUCT.stages,
    )  # fmt: skip
    return y


def thin_product(x: Tensor, a: Tensor, scale: float, mask: Mask | None) -> Tensor:
    """scale * (keep * x) a, (T, r), for x (T, k) and a (k, r), in any strides."""
    (tokens, inner), rank = x.shape, a.shape[1]
    y = x.new_empty(tokens, rank)
    _thin_product[(parts(tokens, THIN.rows),)](
        x, a, y, tokens, inner, rank, scale, *_words(mask), *x.stride(), *a.stride(),
        DROPS=mask is not None, RANK=covering(rank, LEAST), TYPE=operand(x), ROWS=THIN.rows, INNER=THIN.inner,
        num_warps=THIN.warps, num_stages=THIN.stages,
    )  # fmt: skip
    return y


def _gradient_of_A(inner: Tensor, x: Tensor, mask: Mask | None) -> Tensor:
    """inner^T (keep * x), (r, d_in), for inner (T, r); the same at every call: partial sums meet in a fixed order."""
    (tokens, rank), columns = inner.shape, x.shape[1]
    splits = max(1, min(SPLITS, parts(tokens, THIN.rows)))
    partial = torch.empty(splits, rank, columns, dtype=torch.float32, device=x.device)
    _gradient_sums[(parts(columns, THIN.columns), splits)](
        inner, x, partial, tokens, columns, rank, parts(tokens, splits), *_words(mask),
        *inner.stride(), *x.stride(),
        DROPS=mask is not None, RANK=covering(rank, LEAST), TYPE=operand(x), ROWS=THIN.rows, COLUMNS=THIN.columns,
        num_warps=warps_of(covering(rank, LEAST) * THIN.columns), num_stages=THIN.stages,
    )  # fmt: skip
    return partial.sum(0).to(x.dtype)


def _words(mask: Mask | None) -> tuple:
    return (None, None, 0, 0, 0, 0, 0.0) if mask is None else mask.words


@triton.jit
def _tile(ptr, row, column, rows, columns, by_row, by_column):
    """The elements at row (R,) and column (C,) of a (rows, columns) matrix, zero outside it."""
    at = row[:, None].to(tl.int64) * by_row + column[None, :].to(tl.int64) * by_column
    return tl.load(ptr + at, mask=(row < rows)[:, None] & (column < columns)[None, :], other=0.0)


@triton.jit
def _kept(rows_ptr, positions_ptr, row, rows, first, seed, step, site, threshold, kept, WIDTH: tl.constexpr):
    data_row = tl.load(rows_ptr + row, mask=row < rows, other=0)
    position = tl.load(positions_ptr + row, mask=row < rows, other=0)
    return keep(data_row, position, first, seed, step, site, threshold, kept, WIDTH)


@triton.jit(do_not_specialize=DRAWN)
def _product(
    x_ptr, w_ptr, bias_ptr, u_ptr, v_ptr, y_ptr, rows, columns, inner, rank, scale,
    rows_ptr, positions_ptr, seed, step, site, threshold, kept,
    x_row, x_inner, w_inner, w_column, u_row, u_rank, v_rank, v_column,
    DROPS: tl.constexpr, RANK: tl.constexpr, TYPE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(1) * COLUMNS
    column = first + tl.arange(0, COLUMNS)
    y = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(0, inner, INNER):
        k = start + tl.arange(0, INNER)
        x = _tile(x_ptr, row, k, rows, inner, x_row, x_inner).to(TYPE)
        w = _tile(w_ptr, k, column, inner, columns, w_inner, w_column).to(TYPE)
        y = tl.dot(x, w, y, input_precision="ieee")
    r = tl.arange(0, RANK)
    u = _tile(u_ptr, row, r, rows, rank, u_row, u_rank).to(TYPE)
    v = _tile(v_ptr, r, column, rank, columns, v_rank, v_column).to(TYPE)
    low = tl.dot(u, v, input_precision="ieee") * scale
    if DROPS:
        low *= _kept(rows_ptr, positions_ptr, row, rows, first, seed, step, site, threshold, kept, COLUMNS)
    y += low
    if bias_ptr is not None:
        y += tl.load(bias_ptr + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
    at = row[:, None].to(tl.int64) * columns + column[None, :]
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=(row < rows)[:, None] & (column < columns)[None, :])


@triton.jit(do_not_specialize=DRAWN)
def _thin_product(
    x_ptr, a_ptr, y_ptr, rows, inner, rank, scale,
    rows_ptr, positions_ptr, seed, step, site, threshold, kept,
    x_row, x_inner, a_inner, a_rank,
    DROPS: tl.constexpr, RANK: tl.constexpr, TYPE: tl.constexpr, ROWS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    r = tl.arange(0, RANK)
    y = tl.zeros((ROWS, RANK), dtype=tl.float32)
    for start in range(0, inner, INNER):
        k = start + tl.arange(0, INNER)
        x = _tile(x_ptr, row, k, rows, inner, x_row, x_inner)
        if DROPS:
            mask = _kept(rows_ptr, positions_ptr, row, rows, start, seed, step, site, threshold, kept, INNER)
            x = (x.to(tl.float32) * mask).to(x_ptr.dtype.element_ty)
        a = _tile(a_ptr, k, r, inner, rank, a_inner, a_rank).to(TYPE)
        y = tl.dot(x.to(TYPE), a, y, input_precision="ieee")
    at = row[:, None].to(tl.int64) * rank + r[None, :]
    tl.store(y_ptr + at, (y * scale).to(y_ptr.dtype.element_ty), mask=(row < rows)[:, None] & (r < rank)[None, :])


@triton.jit(do_not_specialize=DRAWN)
def _gradient_sums(
    inner_ptr, x_ptr, partial_ptr, rows, columns, rank, share,
    rows_ptr, positions_ptr, seed, step, site, threshold, kept,
    inner_row, inner_rank, x_row, x_column,
    DROPS: tl.constexpr, RANK: tl.constexpr, TYPE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * COLUMNS
    column, r = first + tl.arange(0, COLUMNS), tl.arange(0, RANK)
    split = tl.program_id(1)
    end = tl.minimum(rows, (split + 1) * share)
    total = tl.zeros((RANK, COLUMNS), dtype=tl.float32)
    for start in range(split * share, end, ROWS):
        row = start + tl.arange(0, ROWS)
        x = _tile(x_ptr, row, column, end, columns, x_row, x_column)
        if DROPS:
            mask = _kept(rows_ptr, positions_ptr, row, end, first, seed, step, site, threshold, kept, COLUMNS)
            x = (x.to(tl.float32) * mask).to(x_ptr.dtype.element_ty)
        inner = _tile(inner_ptr, row, r, end, rank, inner_row, inner_rank).to(TYPE)
        total = tl.dot(tl.trans(inner), x.to(TYPE), total, input_precision="ieee")
    at = (split * rank + r[:, None]).to(tl.int64) * columns + column[None, :]
    tl.store(partial_ptr + at, total, mask=(r < rank)[:, None] & (column < columns)[None, :])
