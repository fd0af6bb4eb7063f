"""EVA: X = U S V^T,  A = V_[:r]^T,  B = 0, for the inputs X of each layer on training data: exactly the base.

The rows of A are the directions in which the inputs vary most, found row by row (the SVD of what was kept so far and
what is new) until the cosine of each direction with its former self is tau or more.  Ranks are then dealt out: of all
directions of all layers those that explain the largest share of their layer's inputs, S_i^2 / |X|^2, are taken, as many
as the config has ranks, and at most rho r of a layer; alpha of a layer grows with its rank, so that alpha / r stays.
A layer that gets none is left alone.  Paischer et al. 2024, arXiv:2410.07170, section 3.

PEFT's `eva` subtracts the running mean from the inputs first; here they are taken as the layer reads them.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lorica.errors import TargetError
from lorica.methods.contract import Start
from lorica.methods.starts.contract import Beside, Init, given, need_statistics
from lorica.methods.statistic import Adapted, Statistic
from lorica.site import Site

BUFFER = 512
"""Tokens that are gathered before an SVD."""
SPARE = 2
"""Directions that are kept between two updates for each that may be used: what is cut off does not come back."""
NOISE = 1e-5
"""Directions whose singular value is below this share of the largest are rounding."""


class EVA(Beside):
    """rho: a layer's rank is at most rho r; 1 leaves every layer its r.  tau: the cosine at which collecting stops.
    rows: of the training data, at most."""

    kind: ClassVar[str] = "eva"
    reads: ClassVar[Literal["inputs", "gradients"] | None] = "inputs"
    rho: float = Field(default=2.0, ge=1)
    tau: float = Field(default=0.99, gt=0, le=1)
    rows: int = Field(default=64, ge=1)

    def A(self, site: Site, r: int, start: Start) -> nn.Parameter:
        if start.device.type == "meta":
            return start.empty(r, site.d_in)
        if not start.given:
            raise need_statistics(self.kind)
        A = given(site, start, "A", (r, site.d_in))
        return nn.Parameter(A.to(start.device, start.dtype, copy=True))

    def statistic(self, sites: Sequence[Adapted]) -> Statistic:
        return Inputs(self, sites)

    def remark(self, sites: Sequence[Site]) -> str:
        if self.rho == 1:
            return ""
        return f"init: eva deals out the ranks by the inputs of each layer, up to {self.rho:g} r, once it has seen them"

    @classmethod
    def of_peft(cls, named: str, config: Mapping[str, Any]) -> tuple[Init | None, list[str]]:
        if named != cls.kind:
            return None, []
        options = dict(config.get("eva_config") or {})
        ours = {name: options.pop(name) for name in ("rho", "tau") if name in options}
        options.pop("label_mask_value", None)
        asked = {"use_label_mask": False, "whiten": False, "adjust_scaling_factors": True}
        strange = [f"eva_config.{key}: {value!r}" for key, value in options.items() if asked.get(key) != value]
        return cls(**ours), [f"{told} has no counterpart here; write {asked}" for told in strange]


class Stream:
    """The leading right singular vectors of rows that come a few at a time.

    SV (kept, d) is S V^T of what was seen; its rows stand for all former rows, of which they have the Gram matrix.
    """

    def __init__(self, most: int, tau: float) -> None:
        self.most, self.tau = most, tau
        self.SV: Tensor | None = None
        self.total = 0.0
        self.waiting: list[Tensor] = []
        self.converged = False

    def add(self, x: Tensor) -> None:
        wide = torch.promote_types(x.dtype, torch.float32)
        self.waiting.append(x.detach().flatten(0, -2).to(wide, copy=True))
        if sum(map(len, self.waiting)) >= max(BUFFER, 2 * SPARE * self.most):
            self.update()

    def update(self) -> None:
        if not self.waiting:
            return
        new = torch.cat(self.waiting)
        self.waiting = []
        self.total += float(new.double().square().sum())
        former = self.SV
        stack = new if former is None else torch.cat([former, new])
        _, S, Vt = torch.linalg.svd(stack, full_matrices=False)
        kept = (S[:, None] * Vt)[: SPARE * self.most + 8]
        self.SV = kept
        if former is not None and len(former) >= self.most <= len(kept):
            cosines = nn.functional.cosine_similarity(former[: self.most], kept[: self.most])
            self.converged = bool((cosines.abs() >= self.tau).all())

    def directions(self) -> tuple[Tensor, Tensor]:
        """V^T (k, d), orthonormal, and the share of |X|^2 that each explains (k,), k at most `most`."""
        self.update()
        if self.SV is None or not self.SV.any():
            return torch.empty(0, 0), torch.empty(0)
        sizes = self.SV.norm(dim=1)
        k = min(self.most, int((sizes > NOISE * sizes[0]).sum()))
        return self.SV[:k] / sizes[:k, None], (sizes[:k].double().square() / self.total).cpu()


class Inputs:
    """A stream for each layer; layers that read the same tensor (q, k and v) share one."""

    gradients = False

    def __init__(self, config: EVA, sites: Sequence[Adapted]) -> None:
        self.config, self.rows, self.ranked = config, config.rows, sites
        self.most = {each.site.name: min(round(config.rho * each.r), *each.site.shape) for each in sites}
        self.streams: dict[str, Stream] = {}
        self.before: tuple[Stream, Tensor] | None = None

    @property
    def done(self) -> bool:
        return bool(self.streams) and all(stream.converged for stream in self.streams.values())

    def passes(self) -> Iterator[tuple[Site, ...]]:
        yield tuple(each.site for each in self.ranked)
        self.before = None

    def see(self, site: Site, x: Tensor, g: Tensor | None) -> None:
        name = site.name
        former = self.before[0] if self.before is not None and self.before[1] is x else None
        if name not in self.streams:
            self.streams[name] = former if former is not None else Stream(0, self.config.tau)
            self.streams[name].most = max(self.streams[name].most, self.most[name])
        stream = self.streams[name]
        self.before = (stream, x)
        if stream is not former and not stream.converged:
            stream.add(x)

    def factors(self) -> dict[str, Tensor]:
        unseen = [each.site.name for each in self.ranked if each.site.name not in self.streams]
        if unseen:
            raise TargetError.of([f"{name}: no row reaches it; leave it out of target_modules" for name in unseen])
        found = {each.site.name: self.streams[each.site.name].directions() for each in self.ranked}
        counts = dealt({name: explained[: self.most[name]] for name, (_, explained) in found.items()}, self._budget)
        if not counts:
            raise TargetError("init: eva saw no inputs that differ from zero; give it rows that the base reads")
        return {f"{name}.A": found[name][0][:count].contiguous() for name, count in counts.items()}

    @property
    def _budget(self) -> int:
        return sum(each.r for each in self.ranked)


def dealt(explained: Mapping[str, Tensor], budget: int) -> dict[str, int]:
    """How many directions each layer keeps, when the `budget` that explain most are kept; of equals the first."""
    names = [name for name, shares in explained.items() for _ in range(len(shares))]
    shares = torch.cat([*explained.values(), torch.empty(0, dtype=torch.float64)])
    chosen = shares.argsort(descending=True, stable=True)[:budget].tolist()
    return dict(Counter(names[index] for index in sorted(chosen)))
