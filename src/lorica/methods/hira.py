"""HiRA: dW = W o (B A), o entry by entry.      Huang et al. 2025 (ICLR), openreview TwJrTz9cRS

A (r, d_in) starts random, B (d_out, r) at zero, so training starts at the base.  The rank of dW is bounded by r times
that of W, which is no bound.  There is no alpha.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lorica.errors import AdapterError
from lorica.kernels import FrozenWeight, site_id
from lorica.methods.contract import AroundLinear, Build, Edit, Flow, Keeps, Start, product_of
from lorica.methods.on_layers import OnLayers
from lorica.methods.ranked import LARGEST_RANK
from lorica.site import Site


class HiRA(OnLayers):
    """A low-rank product that scales each entry of the frozen weight.

    r               rank of the product, 32
    dropout         probability, on the input of dW alone
    target_modules  preset, list of names or glob
    modules_to_save modules trained in full and saved whole, such as a new head
    """

    kind: ClassVar[str] = "hira"
    peft_type: ClassVar[str | None] = "HIRA"
    peft_names: ClassVar[Mapping[str, str]] = {"hira_dropout": "write dropout", "alpha": "leave it out, HiRA has none"}
    keys: ClassVar[Mapping[str, str]] = {"A": ".hira_A", "B": ".hira_B"}
    translated: ClassVar[Mapping[str, str]] = {"r": "r", "hira_dropout": "dropout"}
    understood: ClassVar[frozenset[str]] = frozenset({"init_weights"})

    r: int = Field(32, ge=1, le=LARGEST_RANK)
    dropout: float = Field(0.0, ge=0, lt=1)

    def around(self, site: Site) -> Build:
        return lambda start: HiRALinear(self, site, start)

    def note(self, edit: Edit) -> str:
        return f"r={self.r}" if edit.place == "around" else ""

    def advice(self) -> str:
        return "learning rate for HiRA: start at 4.5e-3, as PEFT's benchmark does (one run)"

    def site_of_file(self, name: str, shapes: Mapping[str, tuple[int, ...]]) -> Site | None:
        held = {self.end_of(key): shape for key, shape in shapes.items()}
        if None in held:
            return super().site_of_file(name, shapes)
        if len(held) < 2:
            raise AdapterError(f"{name}: half of a low-rank pair is missing from the file")
        return Site(name=name, kind="linear", shape=(held[".hira_B"][0], held[".hira_A"][-1]))

    def peft_config(self, edits: tuple[Edit, ...], sites: tuple[Site, ...]) -> dict[str, Any]:
        return {
            **self.where_entries(edits, sites),
            "r": self.r,
            "hira_dropout": self.dropout,
            "init_weights": True,
            "fan_in_fan_out": any(edit.site.transposed for edit in edits if edit.place == "around"),
        }

    def kept_at(self, site: Site) -> Keeps:
        return Keeps(inputs=True, like_weight=2)

    @classmethod
    def where_of_config(cls, given: Mapping[str, Any], sites: tuple[Site, ...]) -> tuple[dict[str, Any], list[str]]:
        ours, problems = super().where_of_config(given, sites)
        if given.get("init_weights", True) is not True:
            problems.append(f"init_weights: {given['init_weights']!r} has no counterpart here; leave it at True")
        return ours, problems


class HiRALinear(AroundLinear):
    def __init__(self, config: HiRA, site: Site, start: Start) -> None:
        super().__init__()
        self.A = start.uniform(site.d_in**-0.5, config.r, site.d_in)
        self.B = start.zeros(site.d_out, config.r)
        self.dropout, self.site = config.dropout, site_id(site.name)

    def low_rank(self) -> None:
        return None

    def inert(self) -> bool:
        return not bool((self.A.any(1) & self.B.any(0)).any())

    def merged(self, W: Tensor) -> Tensor:
        return W + W * (self.B.to(W.dtype) @ self.A.to(W.dtype))

    def forward(self, x: Tensor, base: nn.Module, flow: Flow) -> Tensor:
        weight = FrozenWeight.of(base)
        y, dropped = product_of(base, x), self.dropped(x, flow)
        # autocast may have chosen another type than that of x
        return y + _Modulated.apply(*(part.to(y.dtype) for part in (dropped, self.A, self.B)), weight)


class _Modulated(torch.autograd.Function):
    """(W o (B A)) x with the gradients by hand: W o (B A) is made again in the backward pass instead of kept."""

    @staticmethod
    def forward(ctx, x, A, B, weight):  # type: ignore[override]
        ctx.save_for_backward(x, A, B)
        ctx.weight = weight
        return x @ (weight.as_read(x.dtype) * (B @ A)).T

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        x, A, B = ctx.saved_tensors
        W = ctx.weight.as_read(grad.dtype)
        grad_x = grad @ (W * (B @ A)) if ctx.needs_input_grad[0] else None
        of_product = W * (grad.flatten(0, -2).T @ x.flatten(0, -2))
        return grad_x, B.T @ of_product, of_product @ A.T, None
