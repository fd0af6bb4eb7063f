"""PiSSA: W = U S V^T,  B0 = U_r (S_r / s)^1/2,  A0 = (S_r / s)^1/2 V_r^T.        Exactly the base: B0 A0 is subtracted.

s B0 A0 is the best approximation of W of rank r, so the principal part is what is trained first:
W' = (W - s B0 A0) + s B A.  Meng, Wang and Zhang 2024, arXiv:2404.02948, equations 2 to 4.  `niter` takes its
fast SVD in place of the whole one.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from lorica.methods.contract import Start
from lorica.methods.starts.contract import Init, Moved
from lorica.methods.starts.leading import halves, leading_or_fast
from lorica.site import Site


class PiSSA(Moved):
    """niter: power iterations of the fast SVD, None for the whole one."""

    kind: ClassVar[str] = "pissa"
    niter: int | None = Field(default=None, ge=0, le=1000)

    def found(self, site: Site, r: int, scale: float, start: Start) -> tuple[Tensor, Tensor]:
        assert start.weight is not None
        return halves(*leading_or_fast(start.weight.dense(), r, self.niter, start.generator), scale)

    @classmethod
    def of_peft(cls, named: str, config: Mapping[str, Any]) -> tuple[Init | None, list[str]]:
        name, _, niter = named.partition("_niter_")
        if name != cls.kind or (niter and not niter.isdigit()):
            return None, []
        return cls(niter=int(niter) if niter else None), []
