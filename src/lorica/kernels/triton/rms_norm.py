# pyright: reportMissingImports=false, reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
"""RMSNorm in one pass over the rows, and its gradients in one more.

    y = weight * n        n = x i        i = 1 / sqrt(mean(x^2) + eps)
    dx = (dn - n mean(dn n)) i        dn = weight * dy        dweight = sum over rows of dy n

x (T, d), weight (d,), i (T,) float32; x and i are all that is kept.  Zhang & Sennrich 2019, arXiv:1910.07467.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lorica.kernels.triton.tiles import covering, parts, rows_of, warps_of

SPLITS = 64
"""Parts of the rows whose sums for the gradient of the weight are made side by side."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., d), weight (d,) -> (..., d)."""
    return _RMSNorm.apply(x, weight, eps)  # type: ignore[return-value]


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):  # type: ignore[override]
        x_TD = x.reshape(-1, x.shape[-1]).contiguous()
        rows, width = x_TD.shape
        y = torch.empty_like(x_TD, dtype=torch.promote_types(x.dtype, weight.dtype))
        inverse = torch.empty(rows, dtype=torch.float32, device=x.device)
        grid, sizes = _launch(rows, width)
        _forward[grid](x_TD, weight, y, inverse, rows, width, eps, **sizes)
        ctx.save_for_backward(x_TD, weight, inverse)
        return y.view(x.shape)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        x, weight, inverse = ctx.saved_tensors
        wants_x, wants_weight = ctx.needs_input_grad[:2]
        dy = grad.reshape(x.shape).contiguous()
        grad_x = grad_weight = None
        if wants_x:
            grad_x = torch.empty_like(x)
            grid, sizes = _launch(*x.shape)
            _backward[grid](dy, x, weight, inverse, grad_x, *x.shape, **sizes)
            grad_x = grad_x.view(grad.shape)
        if wants_weight:
            grad_weight = _weight_gradient(dy, x, inverse).to(weight.dtype)
        return grad_x, grad_weight, None


def _launch(rows: int, width: int) -> tuple[tuple[int], dict[str, int]]:
    covered = covering(width)
    together = rows_of(covered)
    return (parts(rows, together),), {"ROWS": together, "WIDTH": covered, "num_warps": warps_of(together * covered)}


def _weight_gradient(dy: Tensor, x: Tensor, inverse: Tensor) -> Tensor:
    """(d,) float32, the same at every call: partial sums meet in a fixed order."""
    rows, width = x.shape
    columns = min(covering(width), 128)
    splits = max(1, min(SPLITS, parts(rows, 32)))
    partial = torch.empty(splits, width, dtype=torch.float32, device=x.device)
    grid = (parts(width, columns), splits)
    _weight_sums[grid](dy, x, inverse, partial, rows, width, parts(rows, splits), ROWS=32, WIDTH=columns)
    return partial.sum(0)


@triton.jit
def _rows_at(rows, width, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """This program's rows (ROWS,), columns (WIDTH,), and the places and bounds of their elements (ROWS, WIDTH)."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    at = row[:, None].to(tl.int64) * width + column[None, :]
    return row, column, at, (row < rows)[:, None] & (column < width)[None, :]


@triton.jit
def _forward(x_ptr, weight_ptr, y_ptr, inverse_ptr, rows, width, eps, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    row, column, at, inside = _rows_at(rows, width, ROWS, WIDTH)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=column < width, other=0.0).to(tl.float32)
    inverse = 1.0 / tl.sqrt(tl.sum(x * x, 1) / width + eps)
    normed = (x * inverse[:, None]).to(x_ptr.dtype.element_ty).to(tl.float32)
    tl.store(y_ptr + at, (weight[None, :] * normed).to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(inverse_ptr + row, inverse, mask=row < rows)


@triton.jit
def _backward(dy_ptr, x_ptr, weight_ptr, inverse_ptr, dx_ptr, rows, width, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    row, column, at, inside = _rows_at(rows, width, ROWS, WIDTH)
    inverse = tl.load(inverse_ptr + row, mask=row < rows, other=0.0)[:, None]
    weight = tl.load(weight_ptr + column, mask=column < width, other=0.0).to(tl.float32)
    normed = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32) * inverse
    inner = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32) * weight[None, :]
    along = tl.sum(inner * normed, 1)[:, None] / width
    tl.store(dx_ptr + at, ((inner - normed * along) * inverse).to(dx_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _weight_sums(dy_ptr, x_ptr, inverse_ptr, partial_ptr, rows, width, share, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    column = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    split = tl.program_id(1)
    total = tl.zeros((WIDTH,), dtype=tl.float32)
    end = tl.minimum(rows, (split + 1) * share)
    for first in range(split * share, end, ROWS):
        row = first + tl.arange(0, ROWS)
        inside = (row < end)[:, None] & (column < width)[None, :]
        at = row[:, None].to(tl.int64) * width + column[None, :]
        inverse = tl.load(inverse_ptr + row, mask=row < end, other=0.0)[:, None]
        normed = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32) * inverse
        total += tl.sum(tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32) * normed, 0)
    tl.store(partial_ptr + split * width + column, total, mask=column < width)
