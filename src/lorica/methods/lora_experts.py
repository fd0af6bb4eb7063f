"""LoRA on the weights of experts held as one parameter: W'[e] = W[e] + s B_e A_e, a pair for each expert e.

    A (r E, d_in)     expert-major: A_e is rows e r .. e r + r
    B (d_out, r E)    rank-major: B_e is columns e, e + E, e + 2 E ...

These are the tensors of PEFT's `target_parameters`.  W (E, d_out, d_in) is read by its module without a call, so W'
takes its place in each forward pass.
"""

import torch
from torch import Tensor, nn

from lorica.kernels import LowRank
from lorica.methods.contract import Start
from lorica.methods.lora_conv import Config
from lorica.site import Site


class LoRAExperts(nn.Module):
    def __init__(self, config: Config, site: Site, start: Start) -> None:
        super().__init__()
        r, (self.experts, d_out, d_in) = config.rank(site), site.shape
        shape = (r * self.experts, d_in)
        self.A = start.normal(1 / r, *shape) if config.init == "gaussian" else start.uniform(d_in**-0.5, *shape)
        self.B = start.zeros(d_out, r * self.experts)
        self.scale = config.scale(site)

    def low_rank(self) -> None:
        """None: there is a product for each expert."""

    def factors(self) -> LowRank:
        """One product for each expert: A (E, r, d_in), B (E, d_out, r)."""
        A = self.A.unflatten(0, (self.experts, -1))
        B = self.B.unflatten(1, (-1, self.experts)).permute(2, 0, 1)
        return LowRank(A=A, B=B, scale=self.scale)

    def merged(self, W: Tensor) -> Tensor:
        """W (E, d_out, d_in) -> W'."""
        pairs = self.factors()
        return torch.baddbmm(W, pairs.B.to(W.dtype), pairs.A.to(W.dtype), alpha=self.scale)
