"""Bottleneck adapters: h <- h + W_up f(W_down h + b_down) + b_up.      Houlsby et al. 2019, arXiv:1902.00751, figure 2

h (..., d) is the output of a sublayer before it joins the residual stream.  W_down (m, d) starts random; W_up (d, m)
and both biases start at zero, so training starts at the base exactly (the authors' code starts near it, at std 1e-3).
Placement: after attention and after the MLP (Houlsby), or after the MLP alone (Pfeiffer et al. 2021, arXiv:2005.00247).
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lorica.errors import TargetError
from lorica.methods.contract import After, Edit, Flow, Keeps, Start
from lorica.methods.saved import Saving
from lorica.site import Site

PLACES = {"houlsby": frozenset({"attention", "cross_attention", "mlp"}), "pfeiffer": frozenset({"mlp"})}
NONLINEARITY_OF = {"houlsby": "swish", "pfeiffer": "relu"}
NONLINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": nn.functional.relu,
    "gelu": nn.functional.gelu,
    "swish": nn.functional.silu,
    "tanh": torch.tanh,
}
LARGEST_SIZE = 2**31 - 1


class Bottleneck(Saving):
    """Small MLPs behind sublayers.

    size            m, the width between W_down and W_up
    placement       houlsby (behind every attention and every MLP) or pfeiffer (behind every MLP)
    nonlinearity    f: relu, gelu, swish or tanh; None: swish with houlsby, relu with pfeiffer, as AdapterHub has them
    modules_to_save modules trained in full and saved whole, such as a new head
    """

    kind: ClassVar[str] = "bottleneck"
    mergeable: ClassVar[bool] = False
    batchable: ClassVar[bool] = False
    peft_names: ClassVar[Mapping[str, str]] = {"r": "write size", "reduction_factor": "write size: the width itself"}

    size: int = Field(64, ge=1, le=LARGEST_SIZE)
    placement: Literal["houlsby", "pfeiffer"] = "houlsby"
    nonlinearity: Literal["relu", "gelu", "swish", "tanh"] | None = None

    def edits(self, sites: tuple[Site, ...], statistics: Mapping[str, Any] | None = None) -> tuple[Edit, ...]:
        wanted = PLACES[self.placement]
        chosen = [site for site in sites if site.kind == "sublayer" and wanted.intersection(site.roles)]
        if not chosen:
            raise TargetError(
                f"bottleneck: no sublayer of this base is known to be {' or '.join(sorted(wanted))}; "
                "its family names its modules otherwise, use a method on linears such as lora"
            )
        around = tuple(After(site, lambda start, site=site: BottleneckModule(self, site, start)) for site in chosen)
        return (*around, *self.saved(sites))

    def activation(self) -> Callable[[Tensor], Tensor]:
        return NONLINEARITIES[self.nonlinearity or NONLINEARITY_OF[self.placement]]

    def keeps(self, edit: Edit) -> Keeps:
        return Keeps(outputs=True, numbers=2 * self.size) if edit.place == "after" else super().keeps(edit)

    def note(self, edit: Edit) -> str:
        return f"m={self.size} {self.nonlinearity or NONLINEARITY_OF[self.placement]}" if edit.place == "after" else ""

    def advice(self) -> str:
        return "learning rate for bottleneck adapters: start at 3e-4"

    @classmethod
    def site_name(cls, key: str) -> str:
        return next((key.removesuffix(end) for end in ENDS if key.endswith(end)), key)

    def site_of_file(self, name: str, shapes: Mapping[str, tuple[int, ...]]) -> Site | None:
        width = next((shape[-1] for key, shape in shapes.items() if key.endswith(".down")), None)
        if width is None:
            return super().site_of_file(name, shapes)
        return Site(name=name, kind="sublayer", roles=("mlp",), shape=(width,))


ENDS = (".down", ".down_bias", ".up", ".up_bias")


class BottleneckModule(nn.Module):
    """down (m, d), up (d, m); forward h (..., d) -> (..., d)."""

    def __init__(self, config: Bottleneck, site: Site, start: Start) -> None:
        super().__init__()
        m, d = config.size, site.d_out
        self.down, self.down_bias = start.uniform(d**-0.5, m, d), start.zeros(m)
        self.up, self.up_bias = start.zeros(d, m), start.zeros(d)
        self.activation = config.activation()

    def forward(self, h: Tensor, flow: Flow) -> Tensor:
        down, down_bias, up, up_bias = (part.to(h.dtype) for part in self.parameters())
        inner = self.activation(nn.functional.linear(h, down, down_bias))
        return h + nn.functional.linear(inner, up, up_bias)

    def inert(self) -> bool:
        return not bool(self.up.any() or self.up_bias.any())
