"""Siblings: linears of one input (q, k, v; gate, up), each with a low-rank product beside it, as one function.

    m = x A^T      y_i = c_i * (x W_i^T + s_i m_i B_i^T) + b_i        A = [A_1; A_2; ...], m_i the columns of A_i

x is read once by all A and its gradient is added up in one buffer; kept are x and m (T, sum of r), and of a branch with
a gain also its product before the gain, whose sum with the gradient is that of c.  Of siblings in C without biases that
product is y over c, so that y is kept, as the attention behind them does with values.

A and B are cast inside: of casts beside, which are two nodes of the graph a factor, a step of thirty layers has 420.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lorica.kernels.frozen_weight import FrozenWeight
from lorica.kernels.gain import gain_gradient, gained, gained_backward
from lorica.kernels.low_rank import LowRank
from lorica.kernels.native import linears as native
from lorica.kernels.native.thin import Thin
from lorica.kernels.noise import Noise
from lorica.kernels.thin import thin_products
from lorica.kernels.tiled import are_many, fits


@dataclass(frozen=True, eq=False)
class Branch:
    """A frozen linear, and the product beside it where there is one."""

    weight: FrozenWeight
    bias: Tensor | None = None
    low_rank: LowRank | None = None

    @property
    def divides(self) -> bool:
        """Whether the product before the gain is that after it over the gain."""
        gain = None if self.low_rank is None else self.low_rank.output
        return gain is None or bool(gain.all())

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
    return _Siblings.apply(x, tuple(branches), *factors(branches))  # type: ignore[return-value]


def factors(branches: Sequence[Branch]) -> list[Tensor | None]:
    """A, B and gain of each branch, None where it has none."""
    found: list[Tensor | None] = []
    for low_rank in (branch.low_rank for branch in branches):
        found += [None] * 3 if low_rank is None else [low_rank.A, low_rank.B, low_rank.output]
    return found


@dataclass(frozen=True, eq=False)
class Part:
    """A branch inside an autograd function: its cast B, and the rows of A and of m^T (sum of r, T) that are its own."""

    branch: Branch
    B: Tensor | None
    gain: Tensor | None
    rows: slice

    @property
    def scale(self) -> float:
        return 1.0 if self.branch.low_rank is None else self.branch.low_rank.scale

    @property
    def linear(self) -> native.Linear:
        weight = self.branch.weight
        return native.Linear(weight.for_tiles(), self.branch.bias, self.B, self.gain, self.scale)

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
        """The gradient before the gain, and that of the gain where the product z that it stands on is given."""
        if self.gain is None:
            return grad, None
        if z is None:
            return grad * self.gain.to(grad.dtype), None
        return gained_backward(grad, z, self.branch.bias, self.gain)

    def grad_gain(self, grad: Tensor, z: Tensor | None) -> Tensor | None:
        if self.gain is None or z is None:
            return None
        return gain_gradient(grad, z, self.branch.bias, self.gain)

    def grad_inner(self, grad: Tensor) -> Tensor | None:
        """The gradient of m: s (g B)^T, (r, T)."""
        return None if self.B is None else (self.B.T @ grad.T).mul_(self.scale)

    def thin(self, m: Tensor, grad: Tensor, gain: Tensor | None) -> Thin:
        """The gradient of B turned; (m g)^T takes half the time of g^T m^T.  gain: of a gradient that lacks it."""
        return Thin(m[self.rows], grad, self.scale, gain, by_columns=True)


@dataclass(frozen=True, eq=False)
class Group:
    """Branches inside an autograd function, and all their A, cast, one above the other (sum of r, d_in)."""

    A: Tensor
    parts: tuple[Part, ...]

    @staticmethod
    def of(branches: Sequence[Branch], given: Sequence[Tensor | None], dtype: torch.dtype) -> "Group":
        """`given` as `factors` gives it; one at least has an A."""
        every_A = [A for A in given[::3] if A is not None]
        A = (every_A[0] if len(every_A) == 1 else torch.cat(every_A)).to(dtype)
        return Group._of_parts(branches, A, [B if B is None else B.to(dtype) for B in given[1::3]], given[2::3])

    @staticmethod
    def _of_parts(
        branches: Sequence[Branch], A: Tensor, every_B: Sequence[Tensor | None], gains: Sequence[Tensor | None]
    ) -> "Group":
        parts, row = list[Part](), 0
        for branch, B, gain in zip(branches, every_B, gains, strict=True):
            rank = 0 if B is None else B.shape[1]
            parts.append(Part(branch, B, gain, slice(row, row + rank)))
            row += rank
        return Group(A, tuple(parts))

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """What a backward pass makes it of again."""
        return self.A, *(part.B for part in self.parts), *(part.gain for part in self.parts)

    @staticmethod
    def again(branches: Sequence[Branch], kept: Sequence[Tensor | None]) -> tuple["Group", Sequence[Tensor | None]]:
        """Of its `tensors`, and what stands behind them."""
        (A, *rest), count = kept, len(branches)
        assert A is not None
        return Group._of_parts(branches, A, rest[:count], rest[count : 2 * count]), rest[2 * count :]

    @property
    def each_A(self) -> list[Tensor | None]:
        return [None if part.B is None else self.A[part.rows] for part in self.parts]


def _is_tiled(parts: Sequence[Part], x: Tensor) -> bool:
    """Whether all of them run in C together."""
    if not all(fits(x, part.branch.weight) for part in parts):
        return False
    biases = (part.branch.bias for part in parts)
    gains = (part.gain for part in parts)
    return all(bias is None or bias.dtype == x.dtype for bias in biases) and all(
        gain is None or gain.dtype == torch.float32 for gain in gains
    )


def outputs(group: Group, x: Tensor, *, with_products: bool) -> native.Made:
    """x (..., d_in); with_products: with the product before the gain of those with one."""
    parts, flat = group.parts, x.reshape(-1, x.shape[-1])
    if _is_tiled(parts, flat) and are_many(flat.shape[0]):
        return _outputs_in_c(group, flat, with_products)
    m = group.A @ flat.T
    products = [part.product(x, m) for part in parts]
    kept = [z if with_products and part.gain is not None else None for part, z in zip(parts, products, strict=True)]
    return native.Made(m, [part.gained(z) for part, z in zip(parts, products, strict=True)], kept)


def _outputs_in_c(group: Group, x: Tensor, with_products: bool) -> native.Made:
    """All in one call where their weights lie at hand, else one at a time, to the same bits."""
    if _lie_at_hand(group):
        return native.linears(x, [part.linear for part in group.parts], group.A, with_products=with_products)
    pairs = zip(group.parts, group.each_A, strict=True)
    each = [native.linears(x, [part.linear], A, with_products=with_products) for part, A in pairs]
    middles = torch.cat([one.middles for one in each])
    return native.Made(middles, [one.outputs[0] for one in each], [one.products[0] for one in each])


def _input_gradient_in_c(group: Group, grads: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    if _lie_at_hand(group):
        return native.input_gradient(grads, [part.linear for part in group.parts], group.A)
    made = [lambda own=part: own.linear for part in group.parts]
    return native.input_gradient_in_turn(grads, made, group.each_A)


def _lie_at_hand(group: Group) -> bool:
    return all(part.branch.weight.at_hand for part in group.parts)


@dataclass(frozen=True, eq=False)
class Gradients:
    """Of the input, None where it wants none, of m^T, and of each gain; and the products that those of B are."""

    group: Group
    x: Tensor | None
    inner: Tensor
    of_gains: Sequence[Tensor | None]
    of_B: Sequence[Thin]

    @property
    def divided(self) -> "Gradients":
        """Where those of gains were made of products after the gain: the gain times what they should be."""
        pairs = zip(self.of_gains, self.group.parts, strict=True)
        each = [None if one is None or part.gain is None else one / part.gain for one, part in pairs]
        return replace(self, of_gains=each)

    def factors(self, x: Tensor) -> list[Tensor | None]:
        """Of every factor, as `factors` orders them; x (T, d_in) is the input."""
        of_A, *every_B = thin_products([Thin(self.inner, x), *self.of_B])
        found, of_B = list[Tensor | None](), iter(every_B)
        for part, of_gain in zip(self.group.parts, self.of_gains, strict=True):
            found += [None, None] if part.B is None else [of_A[part.rows], next(of_B).T]
            found.append(of_gain)
        return found


def gradients(
    group: Group, grads: Sequence[Tensor], m: Tensor, products: Sequence[Tensor | None], *, of_x: bool
) -> Gradients:
    """grads: of y (T, d_out) of each; products: z of those with a gain, None where that of the gain is not
    wanted; of_x: whether the input wants one."""
    parts, in_c = group.parts, of_x and _is_tiled(group.parts, grads[0])
    if in_c:
        inner, grad_x = _input_gradient_in_c(group, grads)
        of_gains = [part.grad_gain(grad, z) for part, grad, z in zip(parts, grads, products, strict=True)]
    else:
        pairs = [part.before_gain(grad, z) for part, grad, z in zip(parts, grads, products, strict=True)]
        grads, of_gains = [grad for grad, _ in pairs], [of_gain for _, of_gain in pairs]
        inner = _inner_gradients(parts, grads)
        grad_x = _input_gradient(group, grads, inner) if of_x else None
    with_B = ((part, grad) for part, grad in zip(parts, grads, strict=True) if part.B is not None)
    of_B = [part.thin(m, grad, part.gain if in_c else None) for part, grad in with_B]
    return Gradients(group, grad_x, inner, of_gains, of_B)


def _inner_gradients(parts: Sequence[Part], grads: Sequence[Tensor]) -> Tensor:
    """The gradient of m^T (sum of r, T)."""
    return torch.cat([p for part, grad in zip(parts, grads, strict=True) if (p := part.grad_inner(grad)) is not None])


def _input_gradient(group: Group, grads: Sequence[Tensor], inner: Tensor) -> Tensor:
    """sum of g_i W_i + inner^T A, in one buffer."""
    total = None
    for part, grad in zip(group.parts, grads, strict=True):
        total = part.branch.weight.transposed_product(grad, total)
    assert total is not None
    return total.addmm_(inner.T, group.A)


class _Siblings(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, branches, *given):  # type: ignore[override]
        group = Group.of(branches, given, x.dtype)
        parts, flat = group.parts, x.reshape(-1, x.shape[-1])
        # a bias would be a part of what is rounded
        unbiased = all(branch.bias is None for branch in branches)
        divides = len(parts) > 1 and unbiased and _is_tiled(parts, flat) and all(one.divides for one in branches)
        made = outputs(group, x, with_products=not divides)
        products = [
            y if part.gain is not None and divides else z
            for part, y, z in zip(parts, made.outputs, made.products, strict=True)
        ]
        ctx.save_for_backward(flat, made.middles, *group.tensors, *products)
        ctx.branches, ctx.shape, ctx.divides = branches, x.shape, divides
        return tuple(y.view(*x.shape[:-1], y.shape[-1]) for y in made.outputs)

    @staticmethod
    def backward(ctx, *grads):  # type: ignore[override]
        flat, m, *rest = ctx.saved_tensors
        group, products = Group.again(ctx.branches, rest)
        flat_grads = [grad.reshape(-1, grad.shape[-1]) for grad in grads]
        found = gradients(group, flat_grads, m, products, of_x=ctx.needs_input_grad[0])
        found = found.divided if ctx.divides else found
        return None if found.x is None else found.x.view(ctx.shape), None, *found.factors(flat)
