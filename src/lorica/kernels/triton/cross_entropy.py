# pyright: reportMissingImports=false, reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
"""Cross entropy of a frozen head over label tokens: losses and gradient from one tile of logits, which they overwrite.

    loss_t = logsumexp(z_t) - z_t[label_t]        dz_t = exp(z_t - logsumexp(z_t)) - onehot(label_t)        z = h W^T

The logsumexp of a row is made online, from the largest value and the sum of what has been read:
    m' = max(m, max z)        s' = s exp(m - m') + sum exp(z - m')
Milakov & Gimelshein 2018, arXiv:1805.02867.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from lorica.kernels import cross_entropy as plain
from lorica.kernels.triton.tiles import covering

CHUNK_ROWS = 2048
"""Rows of hidden states whose logits exist at one time: 2048 x 128,256 x 2 bytes is 525 MB."""
WIDEST = 4096
"""Logits of a row read at a time."""


def head_cross_entropy(hidden: Tensor, head: Callable[[Tensor], Tensor], labels: Tensor) -> Tensor:
    """Sum of the losses of N label tokens, a float32 scalar.

    hidden (N, d); labels (N,) int64.  A head that is not a frozen plain linear takes the torch path.
    """
    if isinstance(head, nn.Linear) and type(head) is nn.Linear and not head.weight.requires_grad and head.bias is None:
        return _FrozenHead.apply(hidden, head.weight, labels)  # type: ignore[return-value]
    return plain.head_cross_entropy(hidden, head, labels)


def losses_and_gradient_(logits: Tensor, labels: Tensor) -> Tensor:
    """logits (N, V), contiguous, labels (N,) int64 -> losses (N,) float32; `logits` become their own gradient."""
    rows, width = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    _rows[(rows,)](logits, labels, losses, width, BLOCK=min(covering(width), WIDEST))
    return losses


class _FrozenHead(torch.autograd.Function):
    """The gradient of `hidden` is made while the logits of a chunk exist; backward only scales it."""

    @staticmethod
    def forward(ctx, hidden, weight, labels):  # type: ignore[override]
        losses = [hidden.new_zeros(0, dtype=torch.float32)]
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, hidden.shape[0], CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            logits = hidden[rows] @ weight.T
            losses.append(losses_and_gradient_(logits, labels[rows]))
            if gradient is not None:
                torch.matmul(logits, weight, out=gradient[rows])
        ctx.save_for_backward(gradient)
        return torch.cat(losses).sum()

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return gradient * grad.to(gradient.dtype), None, None


@triton.jit
def _rows(logits_ptr, labels_ptr, losses_ptr, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    z_ptr = logits_ptr + row * width
    label = tl.load(labels_ptr + row)
    picked = tl.load(z_ptr + label).to(tl.float32)
    logsumexp = _logsumexp(z_ptr, width, BLOCK)
    tl.store(losses_ptr + row, logsumexp - picked)
    for first in range(0, width, BLOCK):
        at = first + tl.arange(0, BLOCK)
        z = tl.load(z_ptr + at, mask=at < width, other=float("-inf")).to(tl.float32)
        gradient = tl.exp(z - logsumexp) - tl.where(at == label, 1.0, 0.0)
        tl.store(z_ptr + at, gradient.to(logits_ptr.dtype.element_ty), mask=at < width)


@triton.jit
def _logsumexp(z_ptr, width, BLOCK: tl.constexpr):
    """Of the row at z_ptr, in one pass: each lane keeps its own largest value and sum, and they meet at the end."""
    largest = tl.full((BLOCK,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for first in range(0, width, BLOCK):
        at = first + tl.arange(0, BLOCK)
        z = tl.load(z_ptr + at, mask=at < width, other=float("-inf")).to(tl.float32)
        now = tl.maximum(largest, z)
        # a lane that has seen nothing but -inf has a sum of zero
        safe = tl.where(now == float("-inf"), 0.0, now)
        total = total * tl.exp(largest - safe) + tl.exp(z - safe)
        largest = now
    most = tl.max(largest, 0)
    return most + tl.log(tl.sum(total * tl.exp(largest - most), 0))
