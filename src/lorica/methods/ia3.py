"""(IA)^3: l_k * K, l_v * V and l_ff * the MLP's activations.      Liu et al. 2022, arXiv:2205.05638, section 3.3

    keys, values (and any other target)   y = l * (W x + b)     l (d_out, 1), a gain for each output
    the last linear of the MLP            y = W (l * x) + b     l (1, d_in), a gain for each activation that it reads

Every l starts at one, so training starts at the base.  Merged: diag(l) W and l * b, or W diag(l).
"""

import re
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lorica.errors import did_you_mean
from lorica.methods import peft_config
from lorica.methods.contract import AroundLinear, Build, Edit, Flow, Keeps, Role, Start, product_of
from lorica.methods.on_layers import OnLayers, peft_targets
from lorica.methods.targets import ends, matches
from lorica.site import Site

INPUT_SIDE = frozenset({"down", "fc2"})


class IA3(OnLayers):
    """Gains on keys, values and the activations of the MLP.

    target_modules      preset, list of names or glob; the default is the paper's: k, v and the MLP's last linear
    feedforward_modules those of them whose input is scaled instead of their output; left out: the MLP's last linears
    modules_to_save     modules trained in full and saved whole, such as a new head
    """

    kind: ClassVar[str] = "ia3"
    peft_type: ClassVar[str | None] = "IA3"
    peft_names: ClassVar[Mapping[str, str]] = {"init_ia3_weights": "leave it out, every gain starts at one"}
    keys: ClassVar[Mapping[str, str]] = {"l": ".ia3_l"}
    understood: ClassVar[frozenset[str]] = frozenset({"feedforward_modules", "init_ia3_weights"})

    target_modules: str | tuple[str, ...] = "kv-ffn"
    feedforward_modules: tuple[str, ...] | None = None

    def around(self, site: Site) -> Build:
        module = InputGain if self.reads(site) else OutputGain
        return lambda start: module(site, start)

    def reads(self, site: Site) -> bool:
        """Whether the gain is on what this layer reads."""
        if self.feedforward_modules is None:
            return not INPUT_SIDE.isdisjoint(site.roles)
        return any(matches(site.name, name) for name in self.feedforward_modules)

    def problems(self, adapted: list[Site], sites: tuple[Site, ...]) -> list[str]:
        names = {end for site in adapted for end in ends(site.name)}
        return [
            f"feedforward_modules: {name!r} matches no adapted site{did_you_mean(name, {s.leaf for s in adapted})}"
            for name in self.feedforward_modules or ()
            if name not in names
        ]

    def role(self, edit: Edit, parameter: str, shape: tuple[int, ...]) -> Role:
        return "vector" if edit.place == "around" else super().role(edit, parameter, shape)

    def kept_at(self, site: Site) -> Keeps:
        reads = self.reads(site)
        return Keeps(inputs=reads, outputs=not reads)

    def note(self, edit: Edit) -> str:
        return ("input" if self.reads(edit.site) else "output") if edit.place == "around" else ""

    def advice(self) -> str:
        return "learning rate for (IA)^3: start at 3e-3"

    def site_of_file(self, name: str, shapes: Mapping[str, tuple[int, ...]]) -> Site | None:
        """Of the weight only the side that is scaled is known."""
        gain = next((shape for key, shape in shapes.items() if self.end_of(key)), None)
        if gain is None:
            return super().site_of_file(name, shapes)
        return Site(name=name, kind="linear", shape=gain, roles=tuple(INPUT_SIDE) if gain[0] == 1 else ())

    def peft_config(self, edits: tuple[Edit, ...], sites: tuple[Site, ...]) -> dict[str, Any]:
        adapted = [edit.site for edit in edits if edit.place == "around"]
        sides = [[site for site in adapted if self.reads(site) is side] for side in (True, False)]
        inputs, outputs = (peft_targets(side, sites) for side in sides)
        # PEFT matches the names of feed-forward layers without a dot before them.
        confused = any(site.name.endswith(name) for site in sides[1] for name in inputs)
        if confused or isinstance(inputs, str) or isinstance(outputs, str):
            inputs, both = _expression(sides[0]), _expression(adapted)
        else:
            both = sorted({*inputs, *outputs})
        return {
            **self.where_entries(edits, sites),
            "target_modules": both,
            "feedforward_modules": inputs,
            "init_ia3_weights": True,
            "fan_in_fan_out": any(site.transposed for site in adapted),
        }

    @classmethod
    def where_of_config(cls, given: Mapping[str, Any], sites: tuple[Site, ...]) -> tuple[dict[str, Any], list[str]]:
        ours, problems = super().where_of_config(given, sites)
        if given.get("init_ia3_weights") is False:
            problems.append("init_ia3_weights: False starts at noise; every gain starts at one here")
        side, strange = _names(given.get("feedforward_modules"))
        return {**ours, "feedforward_modules": side}, [*problems, *strange]

    @classmethod
    def where_of_file(cls, given: Mapping[str, Any], keys: Collection[str]) -> tuple[dict[str, Any], list[str]]:
        """The names of feed-forward layers as PEFT matches them: by the end of the path, dot or no dot."""
        ours, problems = super().where_of_file(given, keys)
        side, strange = _names(given.get("feedforward_modules"))
        inputs = tuple(site for site in ours["target_modules"] if site.endswith(tuple(side or ())))
        return {**ours, "feedforward_modules": inputs}, [*problems, *strange]


def _expression(sites: list[Site]) -> str:
    """The regular expression of the full paths, for PEFT."""
    return "|".join(re.escape(site.name) for site in sites)


def _names(given: Any) -> tuple[tuple[str, ...] | None, list[str]]:
    """A list of names; of an expression, only alternatives that are plain names."""
    if given is None:
        return None, []
    if not isinstance(given, str):
        return peft_config.names(given, "feedforward_modules")
    names = tuple(re.sub(r"\\(.)", r"\1", part) for part in given.split("|"))
    if all(peft_config.LITERAL.fullmatch(name) for name in names) and "|".join(map(re.escape, names)) == given:
        return names, []
    return (), [f"feedforward_modules: {given!r} is a regular expression; write out the names"]


class Gain(AroundLinear):
    """What both sides share: l, and that W alone does not say what the bias becomes, so there is no low rank."""

    def __init__(self, start: Start, *shape: int) -> None:
        super().__init__()
        self.l = nn.Parameter(torch.ones(*shape, device=start.device, dtype=start.dtype))

    def low_rank(self) -> None:
        return None

    def inert(self) -> bool:
        return bool((self.l == 1).all())

    def merged(self, W: Tensor) -> Tensor:
        return W * self.l.to(W.dtype)


class OutputGain(Gain):
    def __init__(self, site: Site, start: Start) -> None:
        super().__init__(start, site.d_out, 1)

    def merged_bias(self, bias: Tensor) -> Tensor:
        return bias * self.l[:, 0].to(bias.dtype)

    def forward(self, x: Tensor, base: nn.Module, flow: Flow) -> Tensor:
        return _stretched(product_of(base, x), self.l[:, 0])


class InputGain(Gain):
    def __init__(self, site: Site, start: Start) -> None:
        super().__init__(start, 1, site.d_in)

    def forward(self, x: Tensor, base: nn.Module, flow: Flow) -> Tensor:
        return product_of(base, _stretched(x, self.l[0]))


def _stretched(x: Tensor, gain: Tensor) -> Tensor:
    """gain * x, rounded once: bfloat16 has no number between 1 and 1.0078, and gains stay near one."""
    return torch.addcmul(x, x, (gain - 1).to(x.dtype))
