"""LoRA-FA: LoRA whose random A stays as it was drawn; B alone is trained.

    y = W x + s B (A dropout(x))        of x the backward pass needs A x alone: r numbers a token instead of d_in
    g -> s^-2 g (A A^T)^-1              with `corrected`, on the gradient g of B

A (r, d_in) is frozen and kept in the file; B (d_out, r) starts at zero; s as in LoRA.  The correction makes s g' A the
projection of dL/dW on the rows of A, whatever A's scale.

Zhang et al. 2023, arXiv:2308.03303; the correction is its later version's.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from lorica.kernels import LowRank, preconditioned
from lorica.methods.contract import Build, Keeps, Start
from lorica.methods.lora import LoRA, LoRALinear
from lorica.site import Kind, Site


class LoRAFA(LoRA):
    """LoRA with A frozen.  The fields are LoRA's, and

    corrected       the gradient of B is multiplied by s^-2 (A A^T)^-1

    PEFT reads its files as those of LoRA, which they are to whoever does not train on.
    """

    kind: ClassVar[str] = "lora-fa"
    beyond_peft: ClassVar[tuple[str, ...]] = ("corrected",)
    kinds: ClassVar[tuple[Kind, ...]] = ("linear",)
    translated: ClassVar[Mapping[str, str]] = {**LoRA.translated, "corrected": "corrected"}

    corrected: bool = False

    def around(self, site: Site) -> Build:
        module = CorrectedLinear if self.corrected else LoRAFALinear
        return lambda start: module(self, site, start)

    def kept_at(self, site: Site) -> Keeps:
        return Keeps(numbers=self.rank(site))


class LoRAFALinear(LoRALinear):
    A: Tensor  # type: ignore[assignment]

    def __init__(self, config: LoRA, site: Site, start: Start) -> None:
        super().__init__(config, site, start)
        A = self.A.detach()
        del self.A
        self.register_buffer("A", A)

    def low_rank(self) -> LowRank:
        return replace(super().low_rank(), frozen=True)


class CorrectedLinear(LoRAFALinear):
    def low_rank(self) -> LowRank:
        return replace(super().low_rank(), B=preconditioned(self.B, self.A, self.scale))
