# pyright: reportMissingImports=false, reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
"""Causal attention over packed documents: tiles of scores that never leave the chip.

    s_ij = q_i . k_j / sqrt(E)  for j <= i < j + window in one document
    L_i = logsumexp_j s_ij      p_ij = exp(s_ij - L_i)      o_i = sum_j p_ij v_j
    D_i = do_i . o_i            ds_ij = p_ij (do_i . v_j - D_i) / sqrt(E)
    dv_j = sum_i p_ij do_i      dk_j = sum_i ds_ij q_i      dq_i = sum_j ds_ij k_j

q (T, H, E), k and v (T, K, E), each key head read by H / K query heads; o and L (T, H) alone are kept beside them.
Sums over query heads and over tiles are made in a fixed order: the same bits at every call.
Dao 2023, arXiv:2307.08691, algorithms 1 and 2.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from lorica.kernels.triton.tiles import LEAST, Tile, covering, operand

TILE = Tile(rows=64, columns=64, inner=0, warps=4, stages=2)
"""rows: queries; columns: keys."""
KEYS = Tile(rows=32, columns=64, inner=0, warps=8, stages=2)
"""For the gradients of keys and values: two sums of columns x width are held, which fewer threads have no room for."""
LOG2_E = tl.constexpr(1.4426950408889634)
"""Powers of two are what the hardware makes; logsumexp is kept in that base."""


def attention(q: Tensor, k: Tensor, v: Tensor, documents: Sequence[int], window: int | None = None) -> Tensor:
    """q (T, H, E), k and v (T, K, E), `documents` the tokens of each, which sum to T -> (T, H, E).

    Token i of a document sees its tokens i - window < j <= i.
    """
    return _Attention.apply(q, k, v, tuple(documents), window)  # type: ignore[return-value]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, documents, window):  # type: ignore[override]
        q, k, v = (_dense_rows(part) for part in (q, k, v))
        work, reach = work_of(documents, TILE.rows, q.device), _reach(documents, window)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        logsumexp = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
        _forward[len(work), q.shape[1]](
            q, k, v, out, logsumexp, work, *_strides(q, k, v), *_shape(q, k, reach), **_sizes(q, TILE)
        )
        ctx.save_for_backward(q, k, v, out, logsumexp)
        ctx.documents, ctx.reach = documents, reach
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        q, k, v, out, logsumexp = ctx.saved_tensors
        grad = grad.contiguous()
        along = (grad.float() * out.float()).sum(-1)
        dq, dk, dv = (torch.empty(part.shape, dtype=part.dtype, device=part.device) for part in (q, k, v))
        given = (q, k, v, grad, logsumexp, along)
        shape = (*_strides(q, k, v), *_shape(q, k, ctx.reach))
        by_rows = work_of(ctx.documents, TILE.rows, q.device)
        by_columns = work_of(ctx.documents, KEYS.columns, q.device)
        _gradient_of_queries[len(by_rows), q.shape[1]](*given, dq, by_rows, *shape, **_sizes(q, TILE))
        _gradients_of_keys[len(by_columns), k.shape[1]](*given, dk, dv, by_columns, *shape, **_sizes(q, KEYS))
        return dq, dk, dv, None, None


@lru_cache(maxsize=16)
def work_of(documents: tuple[int, ...], tile: int, device: torch.device) -> Tensor:
    """(W, 3) int64: where a document begins and ends, and the first token of one of its tiles.

    Made once for the layers of a pass.  The tiles of the longest documents come first, as they take longest.
    """
    lengths = torch.tensor(documents, dtype=torch.int64)
    ends = lengths.cumsum(0)
    tiles = (lengths + tile - 1) // tile
    document = torch.repeat_interleave(torch.arange(len(documents)), tiles)
    nth = torch.arange(len(document)) - (tiles.cumsum(0) - tiles)[document]
    begins = (ends - lengths)[document]
    work = torch.stack([begins, ends[document], begins + nth * tile], dim=1)
    return work[nth.argsort(descending=True, stable=True)].contiguous().to(device)


def _dense_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _reach(documents: tuple[int, ...], window: int | None) -> int:
    longest = max(documents, default=0)
    return longest if window is None else min(window, longest)


def _strides(*parts: Tensor) -> tuple[int, ...]:
    return tuple(stride for part in parts for stride in part.stride()[:2])


def _shape(q: Tensor, k: Tensor, reach: int) -> tuple[int, int, int, int, float]:
    return q.shape[1], q.shape[1] // k.shape[1], q.shape[2], reach, q.shape[2] ** -0.5


def _sizes(q: Tensor, tile: Tile) -> dict[str, object]:
    return {
        "TYPE": operand(q),
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
        "WIDTH": covering(q.shape[2], LEAST),
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


@triton.jit
def _vectors(ptr, token, end, by_token, width, TYPE: tl.constexpr, WIDTH: tl.constexpr):
    """(N, WIDTH): the vectors of tokens (N,) before `end`, zero elsewhere."""
    channel = tl.arange(0, WIDTH)
    inside = (token < end)[:, None] & (channel < width)[None, :]
    return tl.load(ptr + token[:, None] * by_token + channel[None, :], mask=inside, other=0.0).to(TYPE)


@triton.jit
def _put(ptr, x, token, end, by_token, width, WIDTH: tl.constexpr):
    channel = tl.arange(0, WIDTH)
    inside = (token < end)[:, None] & (channel < width)[None, :]
    tl.store(ptr + token[:, None] * by_token + channel[None, :], x.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def _scores(q, k, row, column, end, reach, factor):
    """(ROWS, COLUMNS): q k^T times factor, -inf where a row does not see a column."""
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * factor
    behind = row[:, None] - column[None, :]
    return tl.where((behind >= 0) & (behind < reach) & (column < end)[None, :], s, float("-inf"))


@triton.jit
def _work(work_ptr):
    """Where the document begins and ends, and the first token of the tile, of this program."""
    at = work_ptr + tl.program_id(0) * 3
    return tl.load(at), tl.load(at + 1), tl.load(at + 2)


@triton.jit
def _forward(
    q_ptr, k_ptr, v_ptr, out_ptr, logsumexp_ptr, work_ptr,
    q_token, q_head, k_token, k_head, v_token, v_head, heads, group, width, reach, scale,
    TYPE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    begin, end, first = _work(work_ptr)
    head = tl.program_id(1)
    row = first + tl.arange(0, ROWS)
    q = _vectors(q_ptr + head * q_head, row, end, q_token, width, TYPE, WIDTH)
    largest = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((ROWS,), dtype=tl.float32)
    out = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    for start in range(tl.maximum(begin, first - reach + 1), tl.minimum(end, first + ROWS), COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        k = _vectors(k_ptr + head // group * k_head, column, end, k_token, width, TYPE, WIDTH)
        v = _vectors(v_ptr + head // group * v_head, column, end, v_token, width, TYPE, WIDTH)
        s = _scores(q, k, row, column, end, reach, scale * LOG2_E)
        now = tl.maximum(largest, tl.max(s, 1))
        # a row that has seen nothing yet has a sum of zero
        safe = tl.where(now == float("-inf"), 0.0, now)
        p = tl.exp2(s - safe[:, None])
        shrink = tl.exp2(largest - safe)
        total = total * shrink + tl.sum(p, 1)
        out = out * shrink[:, None] + tl.dot(p.to(TYPE), v, input_precision="ieee")
        largest = now
    # rows behind the document are not stored
    total = tl.where(row < end, total, 1.0)
    _put(out_ptr + head * width, out / total[:, None], row, end, heads * width, width, WIDTH)
    tl.store(logsumexp_ptr + row * heads + head, largest + tl.log2(total), mask=row < end)


@triton.jit
def _gradient_of_queries(
    q_ptr, k_ptr, v_ptr, do_ptr, logsumexp_ptr, along_ptr, dq_ptr, work_ptr,
    q_token, q_head, k_token, k_head, v_token, v_head, heads, group, width, reach, scale,
    TYPE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    begin, end, first = _work(work_ptr)
    head = tl.program_id(1)
    row = first + tl.arange(0, ROWS)
    q = _vectors(q_ptr + head * q_head, row, end, q_token, width, TYPE, WIDTH)
    do = _vectors(do_ptr + head * width, row, end, heads * width, width, TYPE, WIDTH)
    logsumexp = tl.load(logsumexp_ptr + row * heads + head, mask=row < end, other=0.0)
    along = tl.load(along_ptr + row * heads + head, mask=row < end, other=0.0)
    dq = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    for start in range(tl.maximum(begin, first - reach + 1), tl.minimum(end, first + ROWS), COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        k = _vectors(k_ptr + head // group * k_head, column, end, k_token, width, TYPE, WIDTH)
        v = _vectors(v_ptr + head // group * v_head, column, end, v_token, width, TYPE, WIDTH)
        p = tl.exp2(_scores(q, k, row, column, end, reach, scale * LOG2_E) - logsumexp[:, None])
        dp = tl.dot(do, tl.trans(v), input_precision="ieee")
        ds = p * (dp - along[:, None])
        dq += tl.dot(ds.to(TYPE), k, input_precision="ieee")
    _put(dq_ptr + head * width, dq * scale, row, end, heads * width, width, WIDTH)


@triton.jit
def _gradients_of_keys(
    q_ptr, k_ptr, v_ptr, do_ptr, logsumexp_ptr, along_ptr, dk_ptr, dv_ptr, work_ptr,
    q_token, q_head, k_token, k_head, v_token, v_head, heads, group, width, reach, scale,
    TYPE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    _, end, first = _work(work_ptr)
    key_head = tl.program_id(1)
    column = first + tl.arange(0, COLUMNS)
    k = _vectors(k_ptr + key_head * k_head, column, end, k_token, width, TYPE, WIDTH)
    v = _vectors(v_ptr + key_head * v_head, column, end, v_token, width, TYPE, WIDTH)
    dk = tl.zeros((COLUMNS, WIDTH), dtype=tl.float32)
    dv = tl.zeros((COLUMNS, WIDTH), dtype=tl.float32)
    for head in range(key_head * group, (key_head + 1) * group):
        for start in range(first, tl.minimum(end, first + COLUMNS + reach - 1), ROWS):
            row = start + tl.arange(0, ROWS)
            q = _vectors(q_ptr + head * q_head, row, end, q_token, width, TYPE, WIDTH)
            do = _vectors(do_ptr + head * width, row, end, heads * width, width, TYPE, WIDTH)
            logsumexp = tl.load(logsumexp_ptr + row * heads + head, mask=row < end, other=0.0)
            along = tl.load(along_ptr + row * heads + head, mask=row < end, other=0.0)
            s = _scores(q, k, row, column, end, reach, scale * LOG2_E)
            p = tl.exp2(s - logsumexp[:, None])
            dv += tl.dot(tl.trans(p.to(TYPE)), do, input_precision="ieee")
            ds = p * (tl.dot(do, tl.trans(v), input_precision="ieee") - along[:, None])
            dk += tl.dot(tl.trans(ds.to(TYPE)), q, input_precision="ieee")
    heads_kv = heads // group
    _put(dk_ptr + key_head * width, dk * scale, column, end, heads_kv * width, width, WIDTH)
    _put(dv_ptr + key_head * width, dv, column, end, heads_kv * width, width, WIDTH)
