"""LoKr: dW = s C (x) D, (x) the Kronecker product.      Yeh et al. 2024, LyCORIS, arXiv:2309.14859, section 3.2

d_out = a b and d_in = c d.  C (a, c) is the small one, D (b, d) the large one.  D is B A of rank r where that is
smaller, and so is C with `decompose_both`.  s = alpha / r.  C starts at zero (its B, where it has one), so training
starts at the base.  The product with x, seen as X (c, d), never makes dW:      (C (x) D) x = C X D^T
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from lorica.errors import AdapterError
from lorica.kernels import site_id
from lorica.methods.contract import AroundLinear, Build, Edit, Flow, Keeps, Role, Start, product_of
from lorica.methods.lycoris import Lycoris
from lorica.site import Site


class LoKr(Lycoris):
    """Kronecker products of a small matrix and a larger one, which is low-rank.

    r, alpha         rank of the larger matrix and numerator of the scale, 8 and 16
    decompose_factor a and c, where they divide d_out and d_in; otherwise the largest divisors up to it.  -1: those
                     nearest to the square roots
    decompose_both   the small matrix is a product of rank r as well
    dropout          probability, on the input of the adapter alone
    target_modules   preset, list of names or glob
    rank_pattern, alpha_pattern     name of a module, or its end after a dot, to its own r or alpha
    modules_to_save  modules trained in full and saved whole, such as a new head
    """

    kind: ClassVar[str] = "lokr"
    peft_type: ClassVar[str | None] = "LOKR"
    keys: ClassVar[Mapping[str, str]] = {
        "C.whole": ".lokr_w1",
        "C.B": ".lokr_w1_a",
        "C.A": ".lokr_w1_b",
        "D.whole": ".lokr_w2",
        "D.B": ".lokr_w2_a",
        "D.A": ".lokr_w2_b",
    }
    translated: ClassVar[Mapping[str, str]] = {
        **Lycoris.translated,
        "decompose_factor": "decompose_factor",
        "decompose_both": "decompose_both",
    }

    decompose_factor: int = Field(-1, ge=-1)
    decompose_both: bool = False

    @field_validator("decompose_factor")
    @classmethod
    def _nothing_is_divided_by_zero(cls, factor: int) -> int:
        if factor == 0:
            raise ValueError("0 divides nothing; give the size of the small matrix, or -1 for the square root")
        return factor

    def around(self, site: Site) -> Build:
        return lambda start: LoKrLinear(self, site, start)

    def whole(self, site: Site) -> tuple[bool, bool]:
        """Whether C is a parameter itself, and D, rather than a product of two."""
        (a, b), (c, d) = self.split(site)
        r = self.rank(site)
        return not self.decompose_both or r >= max(a, c) / 2, r >= max(b, d) / 2

    def role(self, edit: Edit, parameter: str, shape: tuple[int, ...]) -> Role:
        """A and B are of C or D, whose Kronecker product is no s B A: LoRA+ says nothing of their rates."""
        return "matrix" if edit.place == "around" else super().role(edit, parameter, shape)

    def kept_at(self, site: Site) -> Keeps:
        """X D^T (b, c), and between the factors of each (c, r) and (b, r)."""
        (_, b), (c, _) = self.split(site)
        of_C, of_D = (0 if whole else self.rank(site) for whole in self.whole(site))
        return Keeps(inputs=True, numbers=b * c + of_C * b + of_D * c)

    def wasteful(self, edits: Iterable[Edit]) -> list[str]:
        """Nothing: a rank beyond the matrix makes it whole."""
        return []

    def note(self, edit: Edit) -> str:
        if edit.place != "around":
            return ""
        (a, b), (c, d) = self.split(edit.site)
        return f"{a}x{c} (x) {b}x{d} {super().note(edit)}"

    def split(self, site: Site) -> tuple[tuple[int, int], tuple[int, int]]:
        """(a, b), (c, d)."""
        return divisors(site.d_out, self.decompose_factor), divisors(site.d_in, self.decompose_factor)

    def peft_config(self, edits: tuple[Edit, ...], sites: tuple[Site, ...]) -> dict[str, Any]:
        return {
            **super().peft_config(edits, sites),
            "decompose_factor": self.decompose_factor,
            "decompose_both": self.decompose_both,
            "rank_dropout_scale": False,
        }

    def site_of_file(self, name: str, shapes: Mapping[str, tuple[int, ...]]) -> Site | None:
        held = {self.end_of(key): shape for key, shape in shapes.items()}
        if None in held:
            return super().site_of_file(name, shapes)
        (a, c), (b, d) = (_shape(name, held, end) for end in (".lokr_w1", ".lokr_w2"))
        return Site(name=name, kind="linear", shape=(a * b, c * d))


def divisors(size: int, factor: int) -> tuple[int, int]:
    """Two numbers whose product is `size`: `factor` first where it divides, otherwise the smaller first, as large as
    the square root and the factor (-1: no bound) allow."""
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    bound = math.isqrt(size) if factor < 0 else min(factor, math.isqrt(size))
    small = next(number for number in range(bound, 0, -1) if size % number == 0)
    return small, size // small


def _shape(name: str, held: Mapping[str | None, tuple[int, ...]], end: str) -> tuple[int, int]:
    """Of a matrix that is stored whole or as its two factors."""
    first, last = held.get(f"{end}_a", held.get(end)), held.get(f"{end}_b", held.get(end))
    if first is None or last is None:
        raise AdapterError(f"{name}: half of a Kronecker product is missing from the file")
    return first[0], last[-1]


class Whole(nn.Module):
    """A matrix that is a parameter."""

    def __init__(self, whole: nn.Parameter) -> None:
        super().__init__()
        self.whole = whole

    def matrix(self, dtype: torch.dtype) -> Tensor:
        return self.whole.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., columns) -> (..., rows)"""
        return x @ self.whole.to(x.dtype).T


class Product(nn.Module):
    """A matrix that is B A."""

    def __init__(self, B: nn.Parameter, A: nn.Parameter) -> None:
        super().__init__()
        self.B, self.A = B, A

    def matrix(self, dtype: torch.dtype) -> Tensor:
        return self.B.to(dtype) @ self.A.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.A.to(x.dtype).T @ self.B.to(x.dtype).T


class LoKrLinear(AroundLinear):
    def __init__(self, config: LoKr, site: Site, start: Start) -> None:
        super().__init__()
        (a, b), (c, d) = config.split(site)
        r, (whole_C, whole_D) = config.rank(site), config.whole(site)
        self.C: Whole | Product
        if whole_C:
            self.C = Whole(start.zeros(a, c))
        else:
            self.C = Product(start.zeros(a, r), start.uniform(c**-0.5, r, c))
        self.D: Whole | Product
        if whole_D:
            self.D = Whole(start.uniform(d**-0.5, b, d))
        else:
            self.D = Product(start.uniform(r**-0.5, b, r), start.uniform(d**-0.5, r, d))
        self.inner = (c, d)
        self.scale, self.dropout, self.site = config.scale(site), config.dropout, site_id(site.name)

    def low_rank(self) -> None:
        return None

    def inert(self) -> bool:
        return self.scale == 0 or not (self.C.matrix(torch.float32).any() and self.D.matrix(torch.float32).any())

    def merged(self, W: Tensor) -> Tensor:
        return W + self.scale * torch.kron(self.C.matrix(W.dtype), self.D.matrix(W.dtype))

    def forward(self, x: Tensor, base: nn.Module, flow: Flow) -> Tensor:
        X = self.dropped(x, flow).unflatten(-1, self.inner)
        Y = self.C(self.D(X).transpose(-1, -2)).transpose(-1, -2)
        return product_of(base, x) + self.scale * Y.flatten(-2)
