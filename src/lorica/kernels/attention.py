"""Attention whose probabilities are made again in the backward pass: causal over whole documents, or under a mask.

    y_i = sum_j p_ij v_j        p_i = softmax_j(q_i k_j / sqrt(E))        causal: i - window < j <= i

Shapes: D documents, L tokens, K heads of keys and values, G heads of queries for each of them, E width of a head.

On CPU in bfloat16 it is made of batched products over blocks of queries, which see no key behind their last: forward
and backward take half the time of torch's flash kernel (4 documents of 512 tokens, 9 heads of 64 on 3, two cores: 28
against 56 ms), and nothing of size L x L is kept.  Elsewhere torch's own kernels are used.
"""

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor, nn

BLOCK = 64
"""Queries whose probabilities exist at one time, for each head: of 32 to 512 the fastest, or within a tenth of it."""


def reference(q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
    """The definition.  q (D, L, K G, E); k and v (D, L, K, E) -> (D, L, K G, E)."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    k, v = (part.repeat_interleave(q.shape[1] // k.shape[1], 1) for part in (k, v))
    scores = q @ k.mT * q.shape[-1] ** -0.5
    return (scores.masked_fill(~_sees(q.shape[2], 0, window), float("-inf")).softmax(-1) @ v).transpose(1, 2)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
    """`reference`.  What is padded behind a document lies in its future and is seen by none of its tokens."""
    window = None if window is not None and window >= q.shape[1] else window
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return by_blocks(q, k, v, window)
    mask = None if window is None else _sees(q.shape[1], 0, window).to(q.device)
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return sdpa(q, k, v, mask).transpose(1, 2)


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """torch's own.  q (D, K G, L, E); k and v (D, K, S, E); mask broadcast to (D, K G, L, S), None: causal."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1 and not takes_shared_heads(q, masked=mask is not None):
        k, v, groups = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1), 1
    return nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=groups > 1
    )


def takes_shared_heads(q: Tensor, *, masked: bool) -> bool:
    """Whether a kernel of torch that keeps no L x L scores reads keys that heads share: on a GPU flash alone does, of
    16 bits, without a mask, from Ampere on.  Where none does, all scores of a pass would exist at once."""
    if not q.is_cuda:
        return True
    return (
        not masked and q.dtype in (torch.bfloat16, torch.float16) and torch.cuda.get_device_capability(q.device)[0] >= 8
    )


def by_blocks(q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
    """`reference`, block by block, with gradients by hand."""
    return _Blocks.apply(q, k, v, window)  # type: ignore[return-value]


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Two batched products.  q (B, H, L, E), k and v (B, H, S, E), mask broadcast to (B, H, L, S): True where seen, or
    what is added to the scores -> (B, H, L, E).  A query that sees nothing gets an output that means nothing.

    In bfloat16 on CPU it takes less than half the time of torch's flash kernel on rows of twenty tokens.
    """
    return _Masked.apply(q, k, v, mask, scale)  # type: ignore[return-value]


def _sees(queries: int, before: int, window: int | None) -> Tensor:
    """(queries, before + queries): which keys each query sees, where `before` keys stand before the first of them."""
    behind = before + torch.arange(queries)[:, None] - torch.arange(before + queries)
    return behind >= 0 if window is None else (behind >= 0) & (behind < window)


class _Blocks(torch.autograd.Function):
    """Of the forward pass q, k and v are kept; probabilities are made again, block by block.

    Queries stand as (D K, L G, E): the G rows of one token after another, so that a block is one slice, one product
    serves the G heads, and the gradients of k and v sum over them by themselves.
    """

    @staticmethod
    def forward(ctx, q, k, v, window):  # type: ignore[override]
        groups = q.shape[2] // k.shape[2]
        rows, keys, values = _by_token(q * q.shape[-1] ** -0.5, groups), _by_token(k, 1), _by_token(v, 1)
        out = torch.empty_like(rows)
        for block, seen, hidden in _blocks(rows, groups, keys.shape[1], window):
            out[:, block] = _probabilities(rows[:, block], keys[:, seen], hidden) @ values[:, seen]
        ctx.save_for_backward(rows, keys, values)
        ctx.shape, ctx.window = q.shape, window
        return _by_head(out, groups, q.shape[0])

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        rows, keys, values = ctx.saved_tensors
        documents, length, _, width = ctx.shape
        groups = rows.shape[1] // length
        grad = _by_token(grad, groups)
        # blocks add up in float32: there are as many roundings as blocks otherwise
        wide = torch.promote_types(keys.dtype, torch.float32)
        grad_rows, grad_k, grad_v = torch.empty_like(rows), *(torch.zeros_like(keys, dtype=wide) for _ in range(2))
        for block, seen, hidden in _blocks(rows, groups, length, ctx.window):
            p, above = _probabilities(rows[:, block], keys[:, seen], hidden), grad[:, block]
            grad_v[:, seen] += p.mT @ above
            inner = torch.ops.aten._softmax_backward_data(above @ values[:, seen].mT, p, -1, p.dtype)
            grad_rows[:, block] = inner @ keys[:, seen]
            grad_k[:, seen] += inner.mT @ rows[:, block]
        grad_q = _by_head(grad_rows.mul_(width**-0.5), groups, documents)
        grad_k, grad_v = (_by_head(part.to(keys.dtype), 1, documents) for part in (grad_k, grad_v))
        return grad_q, grad_k, grad_v, None


def _by_token(x: Tensor, groups: int) -> Tensor:
    """(D, L, K G, E) -> (D K, L G, E)."""
    documents, length, heads, width = x.shape
    split = x.view(documents, length, heads // groups, groups, width)
    return split.transpose(1, 2).reshape(documents * heads // groups, length * groups, width)


def _by_head(rows: Tensor, groups: int, documents: int) -> Tensor:
    """(D K, L G, E) -> (D, L, K G, E)."""
    split = rows.view(documents, rows.shape[0] // documents, -1, groups, rows.shape[-1])
    return split.transpose(1, 2).flatten(2, 3)


def _blocks(rows: Tensor, groups: int, length: int, window: int | None) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows of a block, the keys that any of them sees, and what is added to their scores: -inf where one sees none."""
    for start in reversed(range(0, length, BLOCK)):
        end = min(start + BLOCK, length)
        first = 0 if window is None else max(0, start - window + 1)
        hidden = _hidden(end - start, start - first, window, groups, rows.dtype)
        yield slice(start * groups, end * groups), slice(first, end), hidden


@lru_cache(maxsize=256)
def _hidden(queries: int, before: int, window: int | None, groups: int, dtype: torch.dtype) -> Tensor:
    """(queries groups, keys): of the block itself alone without a window, since all keys before it are seen."""
    sees = _sees(queries, 0 if window is None else before, window)
    return torch.zeros(sees.shape, dtype=dtype).masked_fill_(~sees, float("-inf")).repeat_interleave(groups, 0)


def _probabilities(rows: Tensor, keys: Tensor, hidden: Tensor) -> Tensor:
    scores = rows @ keys.mT
    scores[..., scores.shape[-1] - hidden.shape[-1] :].add_(hidden)
    return scores.softmax(-1)


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, mask, scale):  # type: ignore[override]
        q = q * scale
        ctx.save_for_backward(q, k, v, mask)
        ctx.scale = scale
        return _weights(q, k, mask) @ v

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        q, k, v, mask = ctx.saved_tensors
        p = _weights(q, k, mask)
        inner = torch.ops.aten._softmax_backward_data(grad @ v.mT, p, -1, p.dtype)
        of_mask = inner.sum_to_size(mask.shape) if ctx.needs_input_grad[3] else None
        return (inner @ k).mul_(ctx.scale), inner.mT @ q, p.mT @ grad, of_mask, None


def _weights(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    scores = q @ k.mT
    if mask is not None and mask.dtype == torch.bool:
        scores.masked_fill_(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores.add_(mask)
    return scores.softmax(-1)
