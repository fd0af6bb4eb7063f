"""DoRA: LoRA turns the rows of W, and a trained magnitude says how long each is.

    W' = m/n o (W + s B A)          n = |W + s B A| of each row (output), a constant for the gradient
    y  = m/n o (W x) + bias + m/n o (s B A x)
    y  = W x + bias + (m/n - 1) o (W d) + m/n o (s B A d)           d = dropout(x)

m (d_out,) starts at n, which is |W| where B is zero, so m/n is one and training starts at the base, or at W + s B A
where B is not; A (r, d_in).  n takes its new value in each forward pass.  A row without length keeps the gain one: 0/0
has no direction, and a zero B could not leave it.
On an embedding (rows, d) the magnitudes are those of the d columns, m (d,).

Liu et al. 2024, arXiv:2402.09353, equations 5 and 11; with dropout as in the authors' code (NVlabs/DoRA).
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lorica.kernels import DenseWeight, FrozenWeight, LowRank, Noise, row_norms, row_squares
from lorica.methods.contract import Build, Edit, Flow, Keeps, Start
from lorica.methods.lora import LoRA, LoRAEmbedding, LoRALinear
from lorica.site import Kind, Site


class DoRA(LoRA):
    """Weight-decomposed low-rank adaptation.  Every field means what it means in LoRA."""

    kind: ClassVar[str] = "dora"
    kinds: ClassVar[tuple[Kind, ...]] = ("linear", "embedding")
    keys: ClassVar[Mapping[str, str]] = {
        **LoRA.keys,
        "magnitude.m": ".lora_magnitude_vector",
        "embedding_magnitude.m": ".lora_magnitude_vector",
    }
    understood: ClassVar[frozenset[str]] = LoRA.understood | {"use_dora"}

    def around(self, site: Site) -> Build:
        module = DoRAEmbedding if site.kind == "embedding" else DoRALinear
        return lambda start: module(self, site, start)

    def kept_at(self, site: Site) -> Keeps:
        return Keeps(inputs=True, outputs=True, numbers=self.rank(site), fuses=True, like_weight=0)

    def peft_config(self, edits: tuple[Edit, ...], sites: tuple[Site, ...]) -> dict[str, Any]:
        return {**super().peft_config(edits, sites), "use_dora": True}

    @classmethod
    def is_meant(cls, config: Mapping[str, Any]) -> bool:
        return bool(config.get("use_dora"))


class Magnitude(nn.Module):
    """m (d_out,), and |W|^2 of each row, which is made anew with the module."""

    squares: Tensor

    def __init__(self, weight: FrozenWeight, A: Tensor, B: Tensor, scale: float) -> None:
        super().__init__()
        self.register_buffer("squares", row_squares(weight, A.dtype), persistent=False)
        self.m = nn.Parameter(row_norms(weight, self.squares, A.detach(), B.detach(), scale))

    def gain(self, weight: FrozenWeight, squares: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
        """m/n (d_out,)"""
        n = row_norms(weight, squares, A, B, scale)
        # a look that a GPU would have to wait for, and the graph has one node a layer instead of three
        if n.is_cpu and n.all():
            return self.m / n
        alive = n > 0
        return torch.where(alive, self.m / torch.where(alive, n, 1), 1)

    def started(self) -> bool:
        """Whether every row is as long as W's own."""
        return torch.equal(self.m, self.squares.sqrt())


class DoRALinear(LoRALinear):
    def __init__(self, config: LoRA, site: Site, start: Start) -> None:
        super().__init__(config, site, start)
        assert start.weight is not None
        self.magnitude = Magnitude(start.weight, self.A, self.B, self.scale)

    def low_rank(self) -> None:  # type: ignore[override]
        """None: the gains depend on the weight, see `on`."""

    def on(self, weight: FrozenWeight, noise: Noise | None = None) -> LowRank:
        """The product on the layer of this weight, in a pass with or without noise."""
        gain = self.magnitude.gain(weight, self.magnitude.squares, self.A, self.B, self.scale)
        gains: dict[str, Any] = {"dropped_base": gain - 1} if noise is not None and self.dropout else {"base": gain}
        return LowRank(A=self.A, B=self.B, scale=self.scale, output=gain, dropout=self.dropout, site=self.site, **gains)

    def factors(self) -> LowRank | None:
        """As far as can be told without W: where no row was stretched or turned."""
        still = self.magnitude.started() and not self.B.any()
        return LowRank(A=self.A, B=self.B, scale=self.scale) if still else None

    def merged(self, W: Tensor) -> Tensor:
        weight = DenseWeight(W)
        gain = self.magnitude.gain(weight, row_squares(weight, W.dtype), self.A, self.B, self.scale)
        return gain.to(W.dtype)[:, None] * super().merged(W)


class DoRAEmbedding(LoRAEmbedding):
    """The matrix as it is stored, (rows, d), is the transpose of the W above."""

    def __init__(self, config: LoRA, site: Site, start: Start) -> None:
        super().__init__(config, site, start)
        assert start.weight is not None
        self.magnitude = Magnitude(_columns(start.weight.dense()), self.A, self.B, self.scale)

    def factors(self) -> LowRank | None:  # type: ignore[override]
        return super().factors() if self.magnitude.started() and not self.A.any() else None

    def merged(self, W: Tensor) -> Tensor:
        weight = _columns(W)
        gain = self.magnitude.gain(weight, row_squares(weight, W.dtype), self.A, self.B, self.scale)
        return super().merged(W) * gain.to(W.dtype)

    def forward(self, ids: Tensor, base: nn.Module, flow: Flow) -> Tensor:
        weight = _columns(FrozenWeight.of(base).dense())
        gain = self.magnitude.gain(weight, self.magnitude.squares, self.A, self.B, self.scale)
        y = super().forward(ids, base, flow)
        return y * gain.to(y.dtype)


def _columns(W: Tensor) -> FrozenWeight:
    """An embedding (rows, d) as (d, rows)."""
    return DenseWeight(W, transposed=True)
