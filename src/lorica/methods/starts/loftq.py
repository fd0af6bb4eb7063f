"""LoftQ: W - Q = U S V^T,  B = U_r (S_r / s)^1/2,  A = (S_r / s)^1/2 V_r^T.        Near the base, nearer to W.

Q are the numbers of the quantised base and W those that were quantised, so rank r puts back as much as it can of what
quantising took: |W - Q - s B A|^2 is the sum of the squares of the singular values from r on.  Li et al. 2023,
arXiv:2310.08659, algorithm 1 with T = 1; later rounds quantise W - s B A, which is another base than this one.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from lorica.errors import TargetError
from lorica.kernels.quantised import like
from lorica.methods.contract import Start
from lorica.methods.starts.contract import Init, Near
from lorica.methods.starts.leading import halves, leading_or_fast, wide
from lorica.methods.statistic import Adapted
from lorica.site import Site

FURTHER = 2
"""How many times further from W than its own quantising Q may be: types, devices and libraries round a few codes
differently; a model that was trained on in between is further."""

COPIES = 6
"""Matrices of one weight's size in float32 that are alive at once: W, Q, W - Q, U, V^T, and what LAPACK works in."""


class LoftQ(Near):
    """original: the checkpoint before it was quantised, where the base was not quantised as it was loaded.  niter:
    power iterations of the fast SVD, None for the whole one."""

    kind: ClassVar[str] = "loftq"
    original: str | None = None
    niter: int | None = Field(default=None, ge=0, le=1000)

    def problems(self, linears: Sequence[Adapted]) -> list[str]:
        dense = [each.site.name for each in linears if not each.site.stored]
        if not dense:
            return []
        more = f" and {len(dense) - 1} more" if len(dense) > 1 else ""
        return [
            f"init: loftq at {dense[0]}{more}: not quantised, so there is nothing to put back; load the base with "
            "quantize: nf4, or leave the layer out"
        ]

    def found(self, site: Site, r: int, scale: float, start: Start) -> tuple[Tensor, Tensor]:
        assert start.weight is not None
        assert start.original is not None
        W = wide(start.original(self.original).to(start.device))
        lost = W - start.weight.dense()
        _require_same(site, lost, W - like(start.weight, W).dense())  # type: ignore[arg-type]
        U, S, Vt = leading_or_fast(lost, r, self.niter, start.generator)
        if not S[-1] > 0:
            raise TargetError(f"init: loftq at {site.name}: quantising took less than rank {r} from it; leave it out")
        return halves(U, S, Vt, scale)

    def remark(self, sites: Sequence[Site]) -> str:
        largest = max((site.d_in * site.d_out for site in sites), default=0)
        return (
            f"init: loftq reads {len(sites)} weights as they were before quantising, one at a time, and makes an SVD "
            f"of each: about {4 * COPIES * largest / 1e9:.2g} GB beside the base while it is attached"
        )

    @classmethod
    def of_peft(cls, named: str, config: Mapping[str, Any]) -> tuple[Init | None, list[str]]:
        if named != cls.kind:
            return None, []
        options = dict(config.get("loftq_config") or {})
        ours = {"loftq_bits": 4, "loftq_iter": 1}
        strange = [f"loftq_config.{key}: {value!r}" for key, value in options.items() if ours.get(key) != value]
        return cls(), [f"{told} has no counterpart here; write {ours}, on a base in four bits" for told in strange]


def _require_same(site: Site, lost: Tensor, quantising: Tensor) -> None:
    """Whether the base is what W becomes by quantising."""
    far, usual = float(lost.norm()), float(quantising.norm())
    if far > FURTHER * usual:
        raise TargetError(
            f"init: loftq at {site.name}: the base is {far:.3g} from the original, where quantising that takes it "
            f"{usual:.3g} away; it is another model's, name this one's: init: {{name: loftq, original: FOLDER}}"
        )
