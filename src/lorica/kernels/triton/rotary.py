# pyright: reportMissingImports=false, reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
"""Rotary position embedding of queries and keys in one pass; the gradient is turned back.

    y_i = x_i cos - x_(i + E/2) sin        y_(i + E/2) = x_(i + E/2) cos + x_i sin

q (T, H, E) and k (T, K, E); a program turns some heads of one token, which share its cos and sin.
Su et al. 2021, arXiv:2104.09864, in the pairing of the Llama checkpoints.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lorica.kernels.triton.tiles import covering, warps_of


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (T, H, E); cos and sin (T, 1, E), whose halves are equal -> (T, H, E), a new tensor."""
    return _Rotary.apply(x, cos, sin, None)  # type: ignore[return-value]


def rotary_pair(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """q (T, H, E) and k (T, K, E) turned in place, by one kernel.

    cos and sin (T, 1, E) of the tokens, or (L, 1, E) of positions 0 ... L - 1 with `positions` (T,) int64 naming each
    token's.  Where gradients are recorded, q and k may not be needed by anything else (torch says so where they are).
    """
    return _RotaryPair.apply(q, k, cos, sin, positions)  # type: ignore[return-value]


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, cos, sin, positions):  # type: ignore[override]
        ctx.save_for_backward(cos, sin, positions)
        return _turned(x, cos, sin, positions, 1)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        return _turned(grad, *ctx.saved_tensors, -1), None, None, None


class _RotaryPair(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, cos, sin, positions):  # type: ignore[override]
        ctx.save_for_backward(cos, sin, positions)
        ctx.mark_dirty(q, k)
        _turn(q, k, q, k, cos, sin, positions, 1)
        return q, k

    @staticmethod
    def backward(ctx, grad_q, grad_k):  # type: ignore[override]
        """New tensors: a gradient may be another's as well."""
        turned_q, turned_k = torch.empty_like(grad_q), torch.empty_like(grad_k)
        _turn(grad_q, grad_k, turned_q, turned_k, *ctx.saved_tensors, -1)
        return turned_q, turned_k, None, None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None, sign: int) -> Tensor:
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _turn(x, x[:, :0], y, y[:, :0], cos, sin, positions, sign)
    return y


def _turn(
    q: Tensor,
    k: Tensor,
    q_out: Tensor,
    k_out: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None,
    sign: int,
) -> None:
    tokens, heads, width = q.shape
    places = torch.arange(tokens, device=q.device) if positions is None else positions
    together, half = covering(max(heads, k.shape[1])), covering(width // 2)
    strides = (part.stride() for part in (q, k, q_out, k_out))
    _turn_heads[(tokens, 2 if k.shape[1] else 1)](
        q, k, q_out, k_out, cos, sin, places, *(s for three in strides for s in three), cos.stride(0), sin.stride(0),
        heads, k.shape[1], width // 2, sign, HEADS=together, HALF=half, num_warps=warps_of(together * half),
    )  # fmt: skip


@triton.jit
def _turn_heads(
    q_ptr, k_ptr, q_out_ptr, k_out_ptr, cos_ptr, sin_ptr, places_ptr,
    q_token, q_head, q_channel, k_token, k_head, k_channel,
    q_out_token, q_out_head, q_out_channel, k_out_token, k_out_head, k_out_channel, cos_row, sin_row,
    q_heads, k_heads, half, sign, HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    place = tl.load(places_ptr + token)
    channel = tl.arange(0, HALF)
    cos = tl.load(cos_ptr + place * cos_row + channel, mask=channel < half, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + place * sin_row + channel, mask=channel < half, other=0.0).to(tl.float32) * sign
    if tl.program_id(1) == 0:
        x_ptr, y_ptr = q_ptr + token * q_token, q_out_ptr + token * q_out_token
        _turn_token(x_ptr, y_ptr, cos, sin, q_head, q_channel, q_out_head, q_out_channel, q_heads, half, HEADS, HALF)
    else:
        x_ptr, y_ptr = k_ptr + token * k_token, k_out_ptr + token * k_out_token
        _turn_token(x_ptr, y_ptr, cos, sin, k_head, k_channel, k_out_head, k_out_channel, k_heads, half, HEADS, HALF)


@triton.jit
def _turn_token(
    x_ptr, y_ptr, cos, sin, x_head, x_channel, y_head, y_channel, heads, half, HEADS: tl.constexpr, HALF: tl.constexpr
):
    head, channel = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (channel < half)
    x_at, y_at = head * x_head + channel * x_channel, head * y_head + channel * y_channel
    first = tl.load(x_ptr + x_at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x_ptr + x_at + half * x_channel, mask=inside, other=0.0).to(tl.float32)
    y_first, y_second = first * cos[None, :] - second * sin[None, :], second * cos[None, :] + first * sin[None, :]
    tl.store(y_ptr + y_at, y_first.to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(y_ptr + y_at + half * y_channel, y_second.to(y_ptr.dtype.element_ty), mask=inside)
