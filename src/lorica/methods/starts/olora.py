"""OLoRA: W = Q R,  B0 = Q[:, :r],  A0 = R[:r].        Exactly the base: B0 A0 is subtracted, with the scale s.

B0 has orthonormal columns.  Buyukakyuz 2024, arXiv:2406.01775; PEFT's `olora`.
"""

from typing import ClassVar

import torch
from torch import Tensor

from lorica.methods.contract import Start
from lorica.methods.starts.contract import Moved
from lorica.methods.starts.leading import wide
from lorica.site import Site


class OLoRA(Moved):
    kind: ClassVar[str] = "olora"

    def found(self, site: Site, r: int, scale: float, start: Start) -> tuple[Tensor, Tensor]:
        assert start.weight is not None
        Q, R = torch.linalg.qr(wide(start.weight.dense()))
        return R[:r], Q[:, :r]
