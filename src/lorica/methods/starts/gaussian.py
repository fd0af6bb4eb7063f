"""A ~ N(0, 1/r^2), B = 0: exactly the base.  PEFT's `gaussian`; Hu et al. 2021 (arXiv:2106.09685) give no sigma."""

from typing import ClassVar

from torch import nn

from lorica.methods.contract import Start
from lorica.methods.starts.contract import Beside
from lorica.site import Site


class Gaussian(Beside):
    kind: ClassVar[str] = "gaussian"
    embeddings: ClassVar[bool] = True

    def A(self, site: Site, r: int, start: Start) -> nn.Parameter:
        return start.normal(1 / r, r, site.d_in)

    def peft(self) -> str:
        return self.kind
