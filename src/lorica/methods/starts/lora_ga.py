"""LoRA-GA: G = dL/dW = U S V^T,  A0 = k V_[:r]^T,  B0 = k U_[:, r:2r],  k = d_out^(1/4) / sqrt(gamma).

Exactly the base: B0 A0 is subtracted, with the scale s.  The first step then moves W' along the gradient of full
fine-tuning.  Wang, Yu and Li 2024, arXiv:2407.05000, section 3, as the authors' code computes it
(Outsider565/LoRA-GA: direction ArB2r, scale `stable`, SVD of 4 r directions with 4 power iterations).  PEFT's
`lora_ga` multiplies B0 by S and scales B0 alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from lorica.errors import DivergedError, TargetError
from lorica.methods.contract import Start
from lorica.methods.starts.contract import Init, Moved, need_statistics
from lorica.methods.starts.leading import leading_projected
from lorica.methods.statistic import Adapted, Statistic
from lorica.site import Site

AT_ONCE = 2_000_000_000
"""Bytes of gradients that are summed in one pass over the rows; a base with more of them takes several passes."""


class LoRAGA(Moved):
    """gamma: the smaller, the larger the start.  rows: of the training data, for the gradient."""

    kind: ClassVar[str] = "lora_ga"
    reads: ClassVar[Literal["inputs", "gradients"] | None] = "gradients"
    gamma: float = Field(default=16.0, gt=0)
    rows: int = Field(default=64, ge=1)

    def problems(self, linears: Sequence[Adapted]) -> list[str]:
        most = {each: min(each.site.shape) // 2 for each in linears}
        return [
            f"r: {each.r} at {each.site.name}, of which lora_ga takes 2 r directions; use 1 to {most[each]}"
            for each in linears
            if each.r > most[each]
        ]

    def statistic(self, sites: Sequence[Adapted]) -> Statistic:
        return Gradients(self, sites)

    def found(self, site: Site, r: int, scale: float, start: Start) -> tuple[Tensor, Tensor]:
        raise need_statistics(self.kind)

    @classmethod
    def of_peft(cls, named: str, config: Mapping[str, Any]) -> tuple[Init | None, list[str]]:
        if named != cls.kind:
            return None, []
        options = dict(config.get("lora_ga_config") or {})
        gamma = options.pop("stable_gamma", 16)
        ours = {"direction": "ArB2r", "scale": "stable"}
        strange = [f"lora_ga_config.{key}: {value!r}" for key, value in options.items() if ours.get(key) != value]
        return cls(gamma=gamma), [f"{told} has no counterpart here; write {ours}" for told in strange]


class Gradients:
    """G (d_out, d_in) = sum over tokens of g x^T, in float32 or better, some sites at a time."""

    gradients = True
    done = False

    def __init__(self, config: LoRAGA, sites: Sequence[Adapted]) -> None:
        self.config, self.rows = config, config.rows
        self.ranked = sites
        self.sums: dict[str, Tensor] = {}
        self.found: dict[str, Tensor] = {}

    def passes(self) -> Iterator[tuple[Site, ...]]:
        for group in _groups(self.ranked, AT_ONCE):
            yield tuple(each.site for each in group)
            for each in group:
                self._settle(each)

    def see(self, site: Site, x: Tensor, g: Tensor | None) -> None:
        assert g is not None
        dtype = torch.promote_types(x.dtype, torch.float32)
        product = g.flatten(0, -2).to(dtype).T @ x.flatten(0, -2).to(dtype)
        self.sums[site.name] = self.sums[site.name].add_(product) if site.name in self.sums else product

    def factors(self) -> dict[str, Tensor]:
        return self.found

    def _settle(self, ranked: Adapted) -> None:
        name, r = ranked.site.name, ranked.r
        G = self.sums.pop(name, None)
        if G is None or not G.any():
            raise TargetError(f"{name}: the loss does not depend on it; leave it out of target_modules")
        if not G.isfinite().all():
            raise DivergedError(
                f"{name}: its gradient is not finite, so lora_ga cannot start from it; look at the rows"
            )
        self.found |= {
            f"{name}.{part}": value for part, value in zip("AB", _start(G, r, self.config.gamma, name), strict=True)
        }


def _start(G: Tensor, r: int, gamma: float, name: str) -> tuple[Tensor, Tensor]:
    """A0 (r, d_in), B0 (d_out, r)."""
    generator = torch.Generator().manual_seed(int.from_bytes(sha256(name.encode()).digest()[:8]) >> 1)
    U, _, Vt = leading_projected(G, 2 * r, q=min(4 * r, *G.shape), niter=4, generator=generator)
    k = G.shape[0] ** 0.25 / gamma**0.5
    return k * Vt[:r], k * U[:, r : 2 * r]


def _groups(sites: Sequence[Adapted], most: int) -> Iterator[list[Adapted]]:
    group: list[Adapted] = []
    held = 0
    for each in sites:
        size = 4 * each.site.d_in * each.site.d_out
        if group and held + size > most:
            yield group
            group, held = [], 0
        group.append(each)
        held += size
    if group:
        yield group
