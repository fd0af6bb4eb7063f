"""Watching layers: what goes into them, and the gradient of what comes out, while the base computes as it is.

    y = base(x)             see(site, x (..., d_in), None)
    backward: g = dL/dy     see(site, x (..., d_in), g (..., d_out))

A watcher is installed as any edit around a layer, so it sees the layer in every family, fused or not.  Gradients flow
though no parameter of the base requires one: each watcher adds a parameter of its own to the graph, and its product to
nothing.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lorica.models.edited import Flow
from lorica.models.edits import install
from lorica.site import Site

See = Callable[[Site, Tensor, Tensor | None], None]


@contextmanager
def watched(model: nn.Module, sites: Iterable[Site], see: See, *, gradients: bool) -> Iterator[None]:
    """Inside the block `see` is told of every pass through these layers.  Rows must not be padded: padding would be
    seen as well.  TargetError for a layer that its family reads without calling it."""
    with ExitStack() as stack:
        for site in sites:
            stack.callback(install(model, "around", site, Watcher(site, see, gradients)))
        yield


class Watcher(nn.Module):
    def __init__(self, site: Site, see: See, gradients: bool) -> None:
        super().__init__()
        self.site, self.see = site, see
        self.anchor = nn.Parameter(torch.zeros(())) if gradients else None

    def low_rank(self) -> None:
        """None: fused products would go past it."""

    def forward(self, x: Tensor, base: nn.Module, flow: Flow) -> Tensor:
        y = base(x)
        if self.anchor is None:
            self.see(self.site, x, None)
            return y
        return _Gradient.apply(y, x.detach(), self.anchor, self.site, self.see)  # type: ignore[return-value]


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, anchor: Tensor, site: Site, see: See) -> Tensor:  # type: ignore[override]
        ctx.x, ctx.site, ctx.see = x, site, see
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:  # type: ignore[override]
        ctx.see(ctx.site, ctx.x, g)
        return g, None, None, None, None
