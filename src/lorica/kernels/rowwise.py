"""Linears of a few rows, each row with adapters of its own: no row depends on the rows beside it, to the bit.

    y_i = W x_i + bias + sum over the terms (i, f, weight) of   weight * delta_f(x_i)
    delta_f(x) = c_out * B (c_mid * A x) + c_base * (W x) + bias_f

What an engine decodes with, whose answers may not depend on their company.  On torch every product is of SLAB rows,
padded with zeros, so that the library takes the same steps for each row wherever it stands.
"""

import ctypes
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lorica.kernels.choice import is_native
from lorica.kernels.frozen_weight import DenseWeight, FrozenWeight
from lorica.kernels.low_rank import LowRank
from lorica.kernels.native import rowwise as native
from lorica.kernels.swiglu import swiglu

SLAB = 16


@dataclass(frozen=True, eq=False, kw_only=True)
class Factors:
    """A LowRank as it is read row by row.  A (r, d_in) and B (r, d_out), turned, in the type of x; `middle` (r,) holds
    the scale, `base` (d_out,) is c_base - 1; vectors in float32 or better, None where absent."""

    A: Tensor
    B: Tensor
    middle: Tensor
    output: Tensor | None = None
    base: Tensor | None = None
    bias: Tensor | None = None

    @classmethod
    def of(cls, low_rank: LowRank, dtype: torch.dtype) -> "Factors":
        """Of the values that it has now; dropout is for training."""
        wide = torch.promote_types(dtype, torch.float32)
        A = low_rank.A if low_rank.input is None else low_rank.A * low_rank.input
        middle = A.new_ones(len(A), dtype=wide) if low_rank.middle is None else low_rank.middle.to(wide)
        gain = low_rank.base if low_rank.dropped_base is None else low_rank.dropped_base + 1
        vectors = {
            "middle": middle * low_rank.scale,
            "output": low_rank.output,
            "base": None if gain is None else gain - 1,
            "bias": low_rank.bias,
        }
        return cls(
            A=A.detach().to(dtype).contiguous(),
            B=low_rank.B.detach().T.to(dtype).contiguous(),
            **{name: None if one is None else one.detach().to(wide).contiguous() for name, one in vectors.items()},  # type: ignore[arg-type]
        )

    @property
    def bytes(self) -> int:
        held = (self.A, self.B, self.middle, self.output, self.base, self.bias)
        return sum(part.nbytes for part in held if part is not None)

    def delta(self, x: Tensor, raw: Tensor) -> Tensor:
        """x (n, d_in), raw = W x (n, d_out) in float32 or better -> (n, d_out), in the type of raw."""
        y = ((x @ self.A.T).to(raw.dtype) * self.middle.to(raw.dtype)) @ self.B.to(raw.dtype)
        y = y if self.output is None else y * self.output
        y = y if self.base is None else y + raw * self.base
        return y if self.bias is None else y + self.bias

    @cached_property
    def native(self) -> Any:
        return native.struct_of(self)


@dataclass(frozen=True, eq=False)
class Terms:
    """What is added at one linear, in the order of rows: `factors[t]` on row `rows[t]`, times `weights[t]`."""

    rows: Sequence[int]
    factors: Sequence[Factors]
    weights: Sequence[float]

    @cached_property
    def _table(self) -> Any:
        return native.table_of(self)

    @property
    def native(self) -> tuple[int, int]:
        """Address and length of the table that C reads."""
        return ctypes.addressof(self._table), len(self.rows)

    @cached_property
    def groups(self) -> list[tuple[Factors, float, Tensor]]:
        """Each factors and weight with the rows they are for.  First terms of rows stand before all second ones, so
        that a row's sum is made in its own order, whatever others take."""
        turns: Counter[int] = Counter()
        found: dict[tuple[int, int, float], tuple[Factors, float, list[int]]] = {}
        for row, factors, weight in zip(self.rows, self.factors, self.weights, strict=True):
            found.setdefault((turns[row], id(factors), weight), (factors, weight, []))[2].append(row)
            turns[row] += 1
        ordered = sorted(found.items(), key=lambda item: item[0][0])
        return [(factors, weight, torch.tensor(rows)) for _, (factors, weight, rows) in ordered]


@dataclass(frozen=True, eq=False)
class RowBranch:
    """One linear of the rows: its weight, its bias, and what is added to it; `terms` None for nothing."""

    weight: FrozenWeight
    bias: Tensor | None
    terms: Terms | None = None


def rowwise(x: Tensor, branches: Sequence[RowBranch], *, widely: bool = False) -> list[Tensor]:
    """x (n, d_in) -> (n, d_out) of each branch, without gradient.  widely: in float32 or better, not rounded to x's."""
    if not is_native("rowwise", x) or x.shape[1] % 2:
        with torch.no_grad():
            return [_by_slabs(x, branch, widely) for branch in branches]
    if all(isinstance(branch.weight, DenseWeight) for branch in branches):
        return native.rowwise(x, branches, widely)
    return [native.rowwise(x, (branch,), widely)[0] for branch in branches]  # one weight at a time is dense


def rowwise_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, (n, f).  torch computes what is left behind whole vectors of a tensor by another exponential, so
    that each row is given to it alone."""
    if is_native("swiglu", gate, up):
        return swiglu(gate, up)
    return torch.stack([nn.functional.silu(g) * u for g, u in zip(gate, up, strict=True)])


def in_slabs(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """function(x) of (n, ...), called with SLAB rows at a time, zeros behind the last."""
    count = x.shape[0]
    padded = nn.functional.pad(x, (0,) * (2 * x.dim() - 1) + (-count % SLAB,))
    return torch.cat([function(slab) for slab in padded.split(SLAB)])[:count]


def _by_slabs(x: Tensor, branch: RowBranch, widely: bool) -> Tensor:
    W = branch.weight.as_read(x.dtype)
    wide = torch.promote_types(x.dtype, torch.float32)
    raw = in_slabs(lambda slab: slab @ W.T, x).to(wide)
    y = raw.clone() if branch.bias is None else raw + branch.bias.to(wide)
    for factors, weight, rows in branch.terms.groups if branch.terms else ():
        places = rows.to(x.device)
        y.index_add_(0, places, _delta_by_slabs(factors, x[places], raw[places]), alpha=weight)
    return y if widely else y.to(x.dtype)


def _delta_by_slabs(factors: Factors, x: Tensor, raw: Tensor) -> Tensor:
    pairs, width = torch.cat([x.to(raw.dtype), raw], 1), x.shape[1]
    return in_slabs(lambda slab: factors.delta(slab[:, :width].to(x.dtype), slab[:, width:]), pairs)
