"""LoRA on a convolution: y = W * x + s B * (A * dropout(x)).     Hu et al. 2021, arXiv:2106.09685, as in their code

A (r, channels_in / groups, *kernel) reads x as W does, with its stride, padding, dilation and padding mode; B (d_out,
r, 1...) is a convolution with a kernel of one place.  So W' = W + s B A, with A as the matrix (r, d_in) of all that is
under the kernel.  With groups, A is one matrix for every group, as each group of W has the same shape.

PEFT writes the same tensors where groups = 1.  With groups, its A reads all channels and its B is grouped, which no
weight of a grouped convolution can hold, so neither side reads the other's files.  With dilation or a padding mode
other than zeros its A reads x otherwise than W does (its issues 3697, 3758), and yet it merges to this W'.
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from lorica.kernels import FrozenConv, LowRank, site_id
from lorica.methods.contract import AroundConv, Flow, Start
from lorica.site import Site


class Config(Protocol):
    """What LoRA's config says of a site."""

    @property
    def dropout(self) -> float: ...
    @property
    def init(self) -> str: ...
    def rank(self, site: Site) -> int: ...
    def scale(self, site: Site) -> float: ...


class LoRAConv(AroundConv):
    def __init__(self, config: Config, site: Site, start: Start) -> None:
        super().__init__()
        r, under = config.rank(site), site.shape[1:]
        kaiming = config.init != "gaussian"
        self.A = start.uniform(site.d_in**-0.5, r, *under) if kaiming else start.normal(1 / r, r, *under)
        self.B = start.zeros(site.d_out, r, *(1,) * (len(under) - 1))
        self.scale, self.dropout, self.site = config.scale(site), config.dropout, site_id(site.name)

    def factors(self) -> LowRank:
        return LowRank(A=self.A.flatten(1), B=self.B.flatten(1), scale=self.scale)

    def merged(self, W: Tensor) -> Tensor:
        A, B = (factor.flatten(1).to(W.dtype) for factor in (self.A, self.B))
        return torch.addmm(W.flatten(1), B, A, alpha=self.scale).view_as(W)

    def forward(self, x: Tensor, base: nn.Module, flow: Flow) -> Tensor:
        y = base(x)
        A, B = self.A.to(x.dtype), self.B.to(x.dtype)
        return y + self.scale * FrozenConv.of(base).low_rank_product(self._dropped(x, flow), A, B)

    def _dropped(self, x: Tensor, flow: Flow) -> Tensor:
        """Masks are drawn by (row, place, channel), whatever the shape of the image."""
        if flow.noise is None or not self.dropout or not self.training:
            return x
        rows = x if x.dim() == self.A.dim() else x[None]
        keep = flow.noise.keep(self.dropout, self.site, rows.movedim(1, -1)).movedim(-1, 1)
        return x * keep.view(x.shape)
