"""Loss scaling for float16: gradients are made of `scale * loss`, so that small ones do not vanish.

A step whose gradients overflow is skipped and the scale halved; after 2,000 good steps it is doubled.
Micikevicius et al. 2018, arXiv:1710.03740, section 3.2.
"""

from dataclasses import dataclass

import torch
from torch import nn

from lorica.errors import DivergedError

GROWTH_INTERVAL = 2000
START = 2.0**16


@dataclass
class LossScale:
    """A power of two, so that scaling itself never rounds."""

    scale: float = 1.0
    fixed: bool = True
    good: int = 0
    skipped: int = 0

    @classmethod
    def of(cls, model: nn.Module) -> "LossScale":
        """1 for ever, unless something of the model is float16."""
        half = any(parameter.dtype == torch.float16 for parameter in model.parameters())
        return cls(START, fixed=False) if half else cls()

    def overflowed(self, step: int) -> None:
        self.scale, self.good, self.skipped = self.scale / 2, 0, self.skipped + 1
        if self.scale < 1:
            raise DivergedError(
                f"step {step}: gradients overflow float16 at every loss scale; use bfloat16 or float32, "
                "or lower learning_rate"
            )

    def succeeded(self) -> None:
        self.good += not self.fixed
        if self.good == GROWTH_INTERVAL:
            self.scale, self.good = self.scale * 2, 0
