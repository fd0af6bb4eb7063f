"""Siblings: linears of one input (q, k, v; gate, up), each with a low-rank product beside it, as one function.

    m = x A^T      y_i = c_i * (x W_i^T + s_i m_i B_i^T) + b_i        A = [A_1; A_2; ...], m_i the columns of A_i

x is read once by all A and its gradient is added up in one buffer; kept are x and m (T, sum of r), and of a branch with
a gain also its product before the gain, whose sum with the gradient is that of c.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorica.kernels.frozen_weight import FrozenWeight
from lorica.kernels.gain import gained, gained_backward
from lorica.kernels.low_rank import LowRank
from lorica.kernels.noise import Noise


@dataclass(frozen=True, eq=False)
class Branch:
    """A frozen linear, and the product beside it where there is one."""

    weight: FrozenWeight
    bias: Tensor | None = None
    low_rank: LowRank | None = None

    def fuses(self, noise: Noise | None) -> bool:
        """No dropout, no gain but one on the whole product, a bias that is not trained, an A that is no frozen one."""
        if self.bias is not None and self.bias.requires_grad:
            return False
        low_rank = self.low_rank
        if low_rank is None:
            return True
        undropped = noise is None or not low_rank.dropout
        return undropped and (low_rank.stretched or (low_rank.plain and not low_rank.frozen))


def fused(x: Tensor, branches: Sequence[Branch]) -> tuple[Tensor, ...]:
    """x (..., d_in) -> (..., d_out) of each branch; one has a product at least, and all of them fuse."""
    return _Siblings.apply(x, tuple(branches), *factors(branches, x.dtype))  # type: ignore[return-value]


def factors(branches: Sequence[Branch], dtype: torch.dtype) -> list[Tensor | None]:
    """A, B and gain of each branch, None where it has none; A and B are cast, since they are small."""
    found: list[Tensor | None] = []
    for low_rank in (branch.low_rank for branch in branches):
        found += [None] * 3 if low_rank is None else [low_rank.A.to(dtype), low_rank.B.to(dtype), low_rank.output]
    return found


@dataclass(frozen=True, eq=False)
class Part:
    """A branch inside an autograd function: its cast factors, and the rows of m^T (sum of r, T) that are its own."""

    branch: Branch
    A: Tensor | None
    B: Tensor | None
    gain: Tensor | None
    rows: slice

    @property
    def scale(self) -> float:
        return 1.0 if self.branch.low_rank is None else self.branch.low_rank.scale

    def product(self, x: Tensor, m: Tensor) -> Tensor:
        """x (..., d_in), m^T (sum of r, T) -> x W^T + s m B^T + b (T, d_out), before the gain.

        The base's product is of x as it is: of another shape torch may sum in another order.
        """
        y = self.branch.weight.product(x, self.branch.bias)
        y = y.reshape(-1, y.shape[-1])
        return y if self.B is None else y.addmm_(m[self.rows].T, self.B.T, alpha=self.scale)

    def gained(self, z: Tensor) -> Tensor:
        return z if self.gain is None else gained(z, self.branch.bias, self.gain)

    def before_gain(self, grad: Tensor, z: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The gradient before the gain, and that of the gain, of the product z that it stands on."""
        if self.gain is None or z is None:
            return grad, None
        return gained_backward(grad, z, self.branch.bias, self.gain)

    def grad_inner(self, grad: Tensor) -> Tensor | None:
        """The gradient of m: s (g B)^T, (r, T)."""
        return None if self.B is None else (self.B.T @ grad.T).mul_(self.scale)

    def grad_B(self, grad: Tensor, m: Tensor) -> Tensor | None:
        # (m g)^T takes half the time of g^T m^T
        return None if self.B is None else (m[self.rows] @ grad).mul_(self.scale).T


def parts_of(branches: Sequence[Branch], given: Sequence[Tensor | None]) -> tuple[Part, ...]:
    """`given` as `factors` gives it."""
    return tuple(_parts(branches, given))


def _parts(branches: Sequence[Branch], given: Sequence[Tensor | None]) -> Iterator[Part]:
    row = 0
    for branch, A, B, gain in zip(branches, given[::3], given[1::3], given[2::3], strict=True):
        rank = 0 if A is None else len(A)
        yield Part(branch, A, B, gain, slice(row, row + rank))
        row += rank


def stacked(parts: Sequence[Part]) -> Tensor:
    """All A, one above the other."""
    return torch.cat([part.A for part in parts if part.A is not None])


def inner_gradients(parts: Sequence[Part], grads: Sequence[Tensor]) -> Tensor:
    """The gradient of m^T (sum of r, T)."""
    return torch.cat([p for part, grad in zip(parts, grads, strict=True) if (p := part.grad_inner(grad)) is not None])


def input_gradient(parts: Sequence[Part], grads: Sequence[Tensor], inner: Tensor, A: Tensor) -> Tensor:
    """sum of g_i W_i + inner^T A, in one buffer."""
    total = None
    for part, grad in zip(parts, grads, strict=True):
        total = part.branch.weight.transposed_product(grad, total)
    assert total is not None
    return total.addmm_(inner.T, A)


def factor_gradients(
    parts: Sequence[Part],
    grads: Sequence[Tensor],
    inner: Tensor,
    x: Tensor,
    m: Tensor,
    gains: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """As `factors` orders them; `grads` before the gains."""
    grad_A = inner @ x
    found: list[Tensor | None] = []
    for part, grad, gain in zip(parts, grads, gains, strict=True):
        found += [None if part.A is None else grad_A[part.rows], part.grad_B(grad, m), gain]
    return found


class _Siblings(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, branches, *given):  # type: ignore[override]
        parts = parts_of(branches, given)
        flat = x.reshape(-1, x.shape[-1])
        m = stacked(parts) @ flat.T
        products = [part.product(x, m) for part in parts]
        kept = (None if part.gain is None else z for part, z in zip(parts, products, strict=True))
        ctx.save_for_backward(flat, m, *given, *kept)
        ctx.branches, ctx.shape = branches, x.shape
        outputs = (part.gained(z) for part, z in zip(parts, products, strict=True))
        return tuple(y.view(*x.shape[:-1], y.shape[-1]) for y in outputs)

    @staticmethod
    def backward(ctx, *grads):  # type: ignore[override]
        flat, m, *rest = ctx.saved_tensors
        parts = parts_of(ctx.branches, rest[: 3 * len(ctx.branches)])
        products = rest[3 * len(ctx.branches) :]
        flat_grads = (grad.reshape(-1, grad.shape[-1]) for grad in grads)
        pairs = [part.before_gain(grad, z) for part, grad, z in zip(parts, flat_grads, products, strict=True)]
        grads, gains = [grad for grad, _ in pairs], [gain for _, gain in pairs]
        inner = inner_gradients(parts, grads)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = input_gradient(parts, grads, inner, stacked(parts)).view(ctx.shape)
        return grad_x, None, *factor_gradients(parts, grads, inner, flat, m, gains)
