"""LoHa: dW = s (B1 A1) o (B2 A2), o entry by entry.      Hyeon-Woo et al. 2022, arXiv:2108.06098, proposition 1

A1, A2 (r, d_in), B1, B2 (d_out, r), s = alpha / r.  The rank of dW is up to r^2.  A2 starts at zero, the others random,
so training starts at the base.  The Hadamard product of two products is one product of rank r^2, which is computed:

    dW = s B A      B[:, (i, j)] = B1[:, i] B2[:, j]      A[(i, j), :] = A1[i, :] A2[j, :]
"""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from lorica.errors import AdapterError
from lorica.kernels import LowRank, site_id
from lorica.methods.contract import AroundLinear, Build, Keeps, Start
from lorica.methods.lycoris import Lycoris
from lorica.site import Site


class LoHa(Lycoris):
    """Hadamard products of two low-rank products.

    r, alpha        rank of each of the two and numerator of the scale, 8 and 16
    dropout         probability, on the input of the adapter alone
    target_modules  preset, list of names or glob
    rank_pattern, alpha_pattern     name of a module, or its end after a dot, to its own r or alpha
    modules_to_save modules trained in full and saved whole, such as a new head
    """

    kind: ClassVar[str] = "loha"
    peft_type: ClassVar[str | None] = "LOHA"
    keys: ClassVar[Mapping[str, str]] = {
        "B1": ".hada_w1_a",
        "A1": ".hada_w1_b",
        "B2": ".hada_w2_a",
        "A2": ".hada_w2_b",
    }

    def around(self, site: Site) -> Build:
        return lambda start: LoHaLinear(self, site, start)

    def kept_at(self, site: Site) -> Keeps:
        return Keeps(inputs=True, numbers=self.rank(site) ** 2, fuses=True)

    def site_of_file(self, name: str, shapes: Mapping[str, tuple[int, ...]]) -> Site | None:
        held = {self.end_of(key): shape for key, shape in shapes.items()}
        if None in held:
            return super().site_of_file(name, shapes)
        if not {".hada_w1_a", ".hada_w1_b"} <= held.keys():
            raise AdapterError(f"{name}: half of a low-rank pair is missing from the file")
        return Site(name=name, kind="linear", shape=(held[".hada_w1_a"][0], held[".hada_w1_b"][-1]))


class LoHaLinear(AroundLinear):
    def __init__(self, config: LoHa, site: Site, start: Start) -> None:
        super().__init__()
        r = config.rank(site)
        self.A1, self.A2 = start.uniform(site.d_in**-0.5, r, site.d_in), start.zeros(r, site.d_in)
        self.B1, self.B2 = start.uniform(r**-0.5, site.d_out, r), start.uniform(r**-0.5, site.d_out, r)
        self.scale, self.dropout, self.site = config.scale(site), config.dropout, site_id(site.name)

    def low_rank(self) -> LowRank:
        B = (self.B1[:, :, None] * self.B2[:, None, :]).flatten(1)
        A = (self.A1[:, None] * self.A2[None]).flatten(0, 1)
        return LowRank(A=A, B=B, scale=self.scale, dropout=self.dropout, site=self.site)

    def merged(self, W: Tensor) -> Tensor:
        B1, A1, B2, A2 = (factor.to(W.dtype) for factor in (self.B1, self.A1, self.B2, self.A2))
        return W + self.scale * (B1 @ A1) * (B2 @ A2)
