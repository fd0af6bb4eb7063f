"""A method of about ten lines for each of the five edits and for the two life-cycle calls."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lorica.kernels import LowRank, site_id
from lorica.methods.contract import (
    After,
    Around,
    AroundLinear,
    Copy,
    Edit,
    Flow,
    Instead,
    KeysValuesBefore,
    Life,
    Method,
    Start,
    TokensBefore,
)
from lorica.site import Site


class Magnitude(Method):
    """Around: W' = m * (W + s B A) / |W + s B A| row by row, as DoRA with the gradient through the norm."""

    kind: ClassVar[str] = "test-magnitude"
    roles: tuple[str, ...] = ("q", "v", "fc1", "up")
    dropout: float = 0.0

    def edits(self, sites: tuple[Site, ...], statistics: Any = None) -> tuple[Edit, ...]:
        chosen = [site for site in sites if site.kind == "linear" and set(self.roles) & set(site.roles)]
        return tuple(Around(site, lambda start, site=site: MagnitudeLinear(self, site, start)) for site in chosen)


class MagnitudeLinear(AroundLinear):
    def __init__(self, config: Magnitude, site: Site, start: Start) -> None:
        super().__init__()
        self.A, self.B, self.scale = start.normal(0.3, 3, site.d_in), start.zeros(site.d_out, 3), 2.0
        self.W = start.weight.dense().to(start.dtype) if start.weight is not None else start.empty(*site.shape).detach()
        self.m = nn.Parameter(self.W.norm(dim=1))
        self.dropout, self.site = config.dropout, site_id(site.name)

    def gain(self, W: Tensor) -> Tensor:
        return self.m / (W + self.scale * self.B @ self.A).norm(dim=1)

    def low_rank(self) -> LowRank:
        gain = self.gain(self.W)
        return LowRank(
            A=self.A, B=self.B, scale=self.scale, base=gain, output=gain, dropout=self.dropout, site=self.site
        )

    def merged(self, W: Tensor) -> Tensor:
        return self.gain(W)[:, None] * (W + self.scale * self.B @ self.A)


class Bottleneck(Method):
    """After: y + up(tanh(down(y)))."""

    kind: ClassVar[str] = "test-bottleneck"
    mergeable: ClassVar[bool] = False

    def edits(self, sites: tuple[Site, ...], statistics: Any = None) -> tuple[Edit, ...]:
        return tuple(
            After(site, lambda start, site=site: BottleneckModule(site, start)) for site in _of(sites, "sublayer")
        )


class BottleneckModule(nn.Module):
    def __init__(self, site: Site, start: Start) -> None:
        super().__init__()
        self.down, self.up = start.normal(0.3, 3, site.d_out), start.zeros(site.d_out, 3)

    def forward(self, y: Tensor, flow: Flow) -> Tensor:
        return y + torch.tanh(y @ self.down.T.to(y.dtype)) @ self.up.T.to(y.dtype)


class Prefix(Method):
    """KeysValuesBefore: free keys and values."""

    kind: ClassVar[str] = "test-prefix"
    mergeable: ClassVar[bool] = False
    length: int = 4

    def edits(self, sites: tuple[Site, ...], statistics: Any = None) -> tuple[Edit, ...]:
        chosen = _of(sites, "attention")
        return tuple(
            KeysValuesBefore(site, lambda start, site=site: PrefixModule(self, site, start)) for site in chosen
        )


class PrefixModule(nn.Module):
    def __init__(self, config: Prefix, site: Site, start: Start) -> None:
        super().__init__()
        self.keys, self.values = (
            start.normal(1.0, config.length, *site.shape),
            start.normal(1.0, config.length, *site.shape),
        )

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.keys, self.values


class Prompt(Method):
    """TokensBefore: free vectors."""

    kind: ClassVar[str] = "test-prompt"
    mergeable: ClassVar[bool] = False
    length: int = 4

    def edits(self, sites: tuple[Site, ...], statistics: Any = None) -> tuple[Edit, ...]:
        return tuple(
            TokensBefore(site, lambda start, site=site: PromptModule(self, site, start))
            for site in _of(sites, "tokens")
        )


class PromptModule(nn.Module):
    def __init__(self, config: Prompt, site: Site, start: Start) -> None:
        super().__init__()
        self.vectors = start.normal(0.3, config.length, site.shape[-1])

    def forward(self) -> Tensor:
        return self.vectors


class Biases(Method):
    """Instead: a free copy of every bias of a linear, as BitFit."""

    kind: ClassVar[str] = "test-biases"

    def edits(self, sites: tuple[Site, ...], statistics: Any = None) -> tuple[Edit, ...]:
        return tuple(Instead(site, Copy) for site in _of(sites, "parameter") if site.leaf == "bias")


class Scales(Method):
    """Instead, computed in each forward: every norm's weight times a gain that starts at one."""

    kind: ClassVar[str] = "test-scales"

    def edits(self, sites: tuple[Site, ...], statistics: Any = None) -> tuple[Edit, ...]:
        chosen = [site for site in _of(sites, "parameter") if site.shape[1:] == () and site.leaf == "weight"]
        return tuple(Instead(site, ScaleModule) for site in chosen)


class ScaleModule(nn.Module):
    def __init__(self, start: Start) -> None:
        super().__init__()
        assert start.parameter is not None
        self.weight = start.parameter.detach()
        self.gain = nn.Parameter(torch.ones_like(self.weight))

    def forward(self) -> Tensor:
        return self.weight * self.gain


class Living(Bottleneck):
    """The two calls: a penalty once a step, and a mask that shrinks what is trained as the steps go by."""

    kind: ClassVar[str] = "test-living"

    def life(self, modules: Mapping[str, nn.Module]) -> Life:
        return ShrinkingLife(modules)


class ShrinkingLife(Life):
    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.modules, self.steps = modules, torch.zeros(())

    def extra_loss(self) -> Tensor:
        return sum((module.down.square().sum() for module in self.modules.values()), torch.zeros(()))  # type: ignore

    @torch.no_grad()
    def after_step(self, step: int, total: int) -> None:
        self.steps += 1
        for module in self.modules.values():
            module.down.mul_(1 - step / total)  # type: ignore[operator, union-attr]

    def state_dict(self) -> dict[str, Tensor]:
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.steps.copy_(state["steps"])


def _of(sites: tuple[Site, ...], kind: str) -> list[Site]:
    return [site for site in sites if site.kind == kind]
