"""VeRA: dW = diag(b) B diag(d) A.      Kopiczko et al. 2024, arXiv:2310.11454, section 3.2

A (r, d_in) and B (d_out, r) are random, frozen and one pair for the whole model: each site reads the first d_in columns
of A and the first d_out rows of B.  Trained are b (d_out), which starts at zero, so that training starts at the base,
and d (r), which starts at 0.1.  There is no alpha.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lorica.kernels import LowRank, site_id
from lorica.methods.contract import Around, AroundLinear, Build, Edit, Keeps, Start
from lorica.methods.on_layers import OnLayers
from lorica.methods.ranked import LARGEST_RANK
from lorica.site import Site

PAIR = {"pair.A": "base_model.vera_A", "pair.B": "base_model.vera_B"}
"""The frozen pair, once a file."""


class VeRA(OnLayers):
    """Trained gains on the middle and the output of one frozen random pair that all layers share.

    r               rank of the pair, 256
    d_initial       where the gains on its middle start
    dropout         probability, on the input of A alone
    seed            what the pair is drawn from, whatever the run's seed
    save_projection the pair is in the adapter's file; without it, the pair is drawn again where the adapter is loaded
    target_modules  preset, list of names or glob
    modules_to_save modules trained in full and saved whole, such as a new head
    """

    kind: ClassVar[str] = "vera"
    peft_type: ClassVar[str | None] = "VERA"
    peft_names: ClassVar[Mapping[str, str]] = {
        "vera_dropout": "write dropout",
        "projection_prng_key": "write seed",
        "lora_alpha": "leave it out, VeRA has no alpha",
        "alpha": "leave it out, VeRA has no alpha",
    }
    keys: ClassVar[Mapping[str, str]] = {"b": ".vera_lambda_b", "d": ".vera_lambda_d"}
    translated: ClassVar[Mapping[str, str]] = {
        "r": "r",
        "vera_dropout": "dropout",
        "d_initial": "d_initial",
        "projection_prng_key": "seed",
        "save_projection": "save_projection",
    }
    understood: ClassVar[frozenset[str]] = frozenset({"bias", "init_weights"})

    r: int = Field(256, ge=1, le=LARGEST_RANK)
    d_initial: float = 0.1
    dropout: float = Field(0.0, ge=0, lt=1)
    seed: int = Field(0, ge=0, lt=2**63)
    save_projection: bool = True

    def edits(self, sites: tuple[Site, ...], statistics: Mapping[str, Any] | None = None) -> tuple[Edit, ...]:
        edits = super().edits(sites, statistics)
        adapted = [edit.site for edit in edits if edit.place == "around"]
        size = max(site.d_out for site in adapted), max(site.d_in for site in adapted)
        around = (Around(site, partial(VeRALinear, self, site, size)) for site in adapted)
        return (*around, *(edit for edit in edits if edit.place != "around"))

    def around(self, site: Site) -> Build:
        """With a pair of this layer's size; `edits` gives all layers one that is as large as they need."""
        return partial(VeRALinear, self, site, (site.d_out, site.d_in))

    def kept_at(self, site: Site) -> Keeps:
        return Keeps(outputs=True, numbers=self.r)

    def note(self, edit: Edit) -> str:
        return f"r={self.r}" if edit.place == "around" else ""

    def remarks(self, sites: tuple[Site, ...]) -> tuple[str, ...]:
        kept = "kept in the adapter's file" if self.save_projection else f"drawn again from seed {self.seed}"
        return (f"one frozen random pair for all sites, {kept}",)

    def advice(self) -> str:
        return "learning rate for VeRA: start at 4e-3, ten times LoRA's; the head needs one of its own"

    def file_name(self, edit: Edit, parameter: str, around: Mapping[str, Sequence[str]]) -> str:
        return PAIR.get(parameter) or super().file_name(edit, parameter, around)

    @classmethod
    def plain_keys(cls, keys: Collection[str]) -> dict[str, str]:
        pair = {key: key for key in keys if cls.surplus(key)}
        return {**super().plain_keys([key for key in keys if key not in pair]), **pair}

    @classmethod
    def surplus(cls, key: str) -> bool:
        """Of a pair that is drawn again, a file may hold a copy."""
        return key in PAIR.values() or super().surplus(key)

    def site_of_file(self, name: str, shapes: Mapping[str, tuple[int, ...]]) -> Site | None:
        """Of the weight, only d_out is known."""
        gains = next((shape for key, shape in shapes.items() if key.endswith(".vera_lambda_b")), None)
        if gains is None:
            return super().site_of_file(name, shapes)
        return Site(name=name, kind="linear", shape=(gains[0], 1))

    def peft_config(self, edits: tuple[Edit, ...], sites: tuple[Site, ...]) -> dict[str, Any]:
        return {
            **self.where_entries(edits, sites),
            **{theirs: getattr(self, ours) for theirs, ours in self.translated.items()},
            "bias": "none",
            "init_weights": True,
            "fan_in_fan_out": any(edit.site.transposed for edit in edits if edit.place == "around"),
        }

    @classmethod
    def where_of_config(cls, given: Mapping[str, Any], sites: tuple[Site, ...]) -> tuple[dict[str, Any], list[str]]:
        ours, problems = super().where_of_config(given, sites)
        if given.get("init_weights") is False:
            problems.append("init_weights: False starts at noise; here VeRA starts at the base")
        return ours, [*problems, *_bias_problems(given)]

    @classmethod
    def where_of_file(cls, given: Mapping[str, Any], keys: Collection[str]) -> tuple[dict[str, Any], list[str]]:
        ours, problems = super().where_of_file(given, [key for key in keys if key not in PAIR.values()])
        return ours, [*problems, *_bias_problems(given)]


def _bias_problems(given: Mapping[str, Any]) -> list[str]:
    if given.get("bias", "none") == "none":
        return []
    return [f"bias: {given['bias']!r} has no counterpart here; leave it at none"]


class Pair(nn.Module):
    """A (r, d_in) and B (d_out, r), uniform in +-sqrt(6 / columns), drawn in float32 on the CPU as PEFT draws them."""

    A: Tensor
    B: Tensor

    def __init__(self, config: VeRA, size: tuple[int, int], start: Start) -> None:
        super().__init__()
        d_out, d_in = size
        generator = torch.Generator().manual_seed(config.seed)
        for name, shape in (("A", (config.r, d_in)), ("B", (d_out, config.r))):
            values = torch.empty(shape, device=start.device, dtype=start.dtype)
            if not values.is_meta:
                bound = math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(shape[1]))
                values.copy_(torch.empty(shape).uniform_(-bound, bound, generator=generator))
            self.register_buffer(name, values, persistent=config.save_projection)


class VeRALinear(AroundLinear):
    def __init__(self, config: VeRA, site: Site, size: tuple[int, int], start: Start) -> None:
        super().__init__()
        key = f"vera {config.seed} {config.r} {size} {config.save_projection} {start.device} {start.dtype}"
        self.pair = start.once(key, lambda: Pair(config, size, start))
        full = torch.full((config.r,), config.d_initial, device=start.device, dtype=start.dtype)
        self.b, self.d = start.zeros(site.d_out), nn.Parameter(full)
        self.d_out, self.d_in = site.d_out, site.d_in
        self.dropout, self.site = config.dropout, site_id(site.name)

    def frozen(self) -> tuple[Tensor, Tensor]:
        """This site's part of the pair: B (d_out, r), A (r, d_in), views of it."""
        assert isinstance(self.pair, Pair)
        return self.pair.B[: self.d_out], self.pair.A[:, : self.d_in]

    def low_rank(self) -> LowRank:
        B, A = self.frozen()
        return LowRank(A=A, B=B, scale=1.0, middle=self.d, output=self.b, dropout=self.dropout, site=self.site)

    def inert(self) -> bool:
        return not (self.b.any() and self.d.any())

    def merged(self, W: Tensor) -> Tensor:
        B, A = (factor.to(W.dtype) for factor in self.frozen())
        return W + (self.b.to(W.dtype)[:, None] * B) @ (self.d.to(W.dtype)[:, None] * A)
