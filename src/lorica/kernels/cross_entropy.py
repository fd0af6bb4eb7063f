"""Cross entropy of a language-model head over label tokens only, in chunks: the full logits never exist.

loss = sum_t  logsumexp(h_t W^T) - (h_t W^T)[label_t]
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from lorica.kernels.choice import is_native
from lorica.kernels.few_shapes import rounded, with_rows
from lorica.kernels.native import cross_entropy as native
from lorica.kernels.native import linears
from lorica.kernels.tiled import TiledWeight, has_tiles

CHUNK_ROWS = 512
"""Rows of hidden states whose logits exist at one time: 512 x 49,152 x 4 bytes is 100 MB."""

FEW_ROWS = 256
"""Rows up to which the library's gradient of the hidden states is quicker, by a half of 64; of 512 it takes 1.6 times
as long."""

CACHED = 1 << 20
"""Logits whose softmax is taken at one time on CPU, 4 MB in float32: of 2,048 rows of 49,152 it takes 80 ms, of rows
that have left the cache between one pass and the next 450 ms."""


def head_cross_entropy(hidden: Tensor, head: Callable[[Tensor], Tensor], labels: Tensor) -> Tensor:
    """Sum of the losses of N label tokens, a float32 scalar (float64 when hidden is).

    hidden (N, d); labels (N,) int64.  A plain linear, frozen or trained, has its gradients made while the logits of a
    chunk exist; any other head (an edited one still passes for a Linear) is recomputed chunk by chunk in the backward
    pass.
    """
    if (read := _as_linear(head, hidden)) is not None:
        return _LinearHead.apply(hidden, *read, labels)  # type: ignore[return-value]
    total = hidden[:0].sum().to(_loss_dtype(hidden))
    for part in chunks(0, len(hidden)):
        total = total + checkpoint(_chunk_loss, hidden[part], head, labels[part], use_reentrant=False)  # type: ignore
    return total


def _as_linear(head: Callable[[Tensor], Tensor], hidden: Tensor) -> tuple[Tensor, Tensor | None] | None:
    """Weight and bias of a head that is x W^T + b; either may be computed as it is read."""
    kind = getattr(type(head), "uncomputed", type(head))
    if kind is not nn.Linear and getattr(kind, "weight_form", None) is not TiledWeight:
        return None
    weight, bias = head.weight, head.bias  # type: ignore[attr-defined]
    if weight.dtype != hidden.dtype or (bias is not None and bias.dtype != hidden.dtype):
        return None
    if torch.is_grad_enabled():
        return weight, bias
    return weight.detach(), None if bias is None else bias.detach()


def chunks(start: int, end: int) -> list[slice]:
    """The rows from `start` to `end`, as many at a time as may have logits."""
    return [slice(at, min(at + CHUNK_ROWS, end)) for at in range(start, end, CHUNK_ROWS)]


def _loss_dtype(hidden: Tensor) -> torch.dtype:
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


def _chunk_loss(hidden: Tensor, head: Callable[[Tensor], Tensor], labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(head(hidden).to(_loss_dtype(hidden)), labels, reduction="sum")


class _LinearHead(torch.autograd.Function):
    """All gradients are made while the logits of a chunk exist; backward only scales them."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, labels):  # type: ignore[override]
        count, head = len(labels), _head_of(hidden, weight, bias)
        wanted = rounded(count, hidden)
        hidden, labels = with_rows(hidden, wanted).contiguous(), with_rows(labels, wanted)
        losses = hidden.new_zeros(wanted, dtype=_loss_dtype(hidden))
        wants_hidden, wants_weight, wants_bias, _ = ctx.needs_input_grad
        of_hidden = torch.empty_like(hidden) if wants_hidden else None
        of_weight = torch.zeros_like(weight) if wants_weight else None
        of_bias = torch.zeros_like(bias) if wants_bias else None
        # to give each chunk new pages takes as long as its product
        room = hidden.new_empty(min(wanted, CHUNK_ROWS), len(weight))
        for rows in chunks(0, wanted):
            logits = room[: rows.stop - rows.start]
            head.product(hidden[rows], logits)
            losses[rows] = _to_gradient(logits, labels[rows])
            if of_hidden is not None:
                head.transposed_product(logits, of_hidden[rows])
            if of_weight is not None:
                of_weight.addmm_(logits.T, hidden[rows])
            if of_bias is not None:
                of_bias += logits[: max(0, count - rows.start)].sum(0)
        ctx.save_for_backward(None if of_hidden is None else of_hidden[:count], of_weight, of_bias)
        return losses[:count].sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[override]
        return *(None if one is None else one * grad.to(one.dtype) for one in ctx.saved_tensors), None


@dataclass(frozen=True, eq=False)
class _Head:
    """W (vocabulary, d), b (vocabulary,), and products that are written where they are wanted."""

    weight: Tensor
    bias: Tensor | None

    def product(self, x: Tensor, out: Tensor) -> None:
        """x W^T + b"""
        if self.bias is None:
            torch.mm(x, self.weight.T, out=out)
        else:
            torch.addmm(self.bias, x, self.weight.T, out=out)

    def transposed_product(self, g: Tensor, out: Tensor) -> None:
        """g W"""
        torch.mm(g, self.weight, out=out)


class _TiledHead(_Head):
    def product(self, x: Tensor, out: Tensor) -> None:
        linears.product_into(out, x, linears.Linear(self.weight, self.bias))

    def transposed_product(self, g: Tensor, out: Tensor) -> None:
        if len(g) <= FEW_ROWS:
            super().transposed_product(g, out)
        else:
            linears.input_gradient_into(out, g, self.weight)


def _head_of(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> _Head:
    return (_TiledHead if has_tiles(hidden, weight, bias) else _Head)(weight, bias)


def _to_gradient(logits: Tensor, labels: Tensor) -> Tensor:
    """Losses (N,) of logits (N, vocabulary), in whose place their gradient stands afterwards: softmax - one-hot."""
    if is_native("cross_entropy", logits):
        return native.to_gradient_(logits, labels)
    wide = _loss_dtype(logits)
    losses = logits.new_empty(len(labels), dtype=wide)
    step = max(1, CACHED // logits.shape[1]) if logits.device.type == "cpu" else max(1, len(labels))
    for start in range(0, len(labels), step):
        rows = slice(start, start + step)
        at = labels[rows, None]
        logs = torch.log_softmax(logits[rows], dim=-1, dtype=wide)
        losses[rows] = -logs.gather(1, at).squeeze(-1)
        gradient = logs.exp_()
        gradient.scatter_add_(1, at, gradient.new_full(at.shape, -1))
        logits[rows] = gradient
    return losses
