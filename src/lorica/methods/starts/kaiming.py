"""A ~ U(-1/sqrt(d_in), 1/sqrt(d_in)), B = 0: exactly the base.

What the authors' code does (`kaiming_uniform_(a=sqrt(5))`), not what the paper says: Hu et al. 2021, arXiv:2106.09685,
section 4.1, "random Gaussian" without a sigma.  PEFT's default as well.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from lorica.methods.contract import Start
from lorica.methods.starts.contract import Beside, Init
from lorica.site import Site


class Kaiming(Beside):
    kind: ClassVar[str] = "kaiming"
    embeddings: ClassVar[bool] = True

    def A(self, site: Site, r: int, start: Start) -> nn.Parameter:
        return start.uniform(site.d_in**-0.5, r, site.d_in)

    @classmethod
    def of_peft(cls, named: str, config: Mapping[str, Any]) -> tuple[Init | None, list[str]]:
        return (cls(), []) if named in ("True", "None") else (None, [])
