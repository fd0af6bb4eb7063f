"""Layout: what the flat tokens of one forward pass are.

Documents lie one after another in a flat row of T tokens.  No attention, no position and no loss crosses a document;
training, evaluation and serving all enter the decoder this way.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lorica.kernels import Noise

if TYPE_CHECKING:
    from lorica.models.cache import KVCache
    from lorica.models.paged import Paged

    Cache = KVCache | Paged


@dataclass(frozen=True, eq=False)
class Layout:
    """documents   tokens of each document in this pass, in order; they sum to T
    positions   (T,) int64, position of each token in its document (beyond what the cache already holds)
    cache       keys and values of earlier passes, one entry a document; None when documents are whole
    route       (T,) int64, which adapter of a Bank each token takes, -1 for the base; None without a Bank
    noise       where each token stands in the training run; None when nothing is dropped (evaluation)
    apart       a pass of an engine: what comes out for a token depends on its own document alone, to the bit
    """

    documents: tuple[int, ...]
    positions: Tensor
    cache: "Cache | None" = None
    route: Tensor | None = None
    noise: Noise | None = None
    apart: bool = False

    @classmethod
    def of(
        cls,
        documents: Sequence[int],
        *,
        cache: "Cache | None" = None,
        route: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> "Layout":
        """The layout of whole documents, or of the next tokens of documents that `cache` holds the beginning of."""
        starts = cache.lengths if cache is not None else [0] * len(documents)
        ranges = [torch.arange(start, start + count) for start, count in zip(starts, documents, strict=True)]
        positions = torch.cat(ranges) if ranges else torch.zeros(0, dtype=torch.int64)
        apart = cache is not None and cache.apart
        return cls(tuple(documents), positions.to(device), cache, route, apart=apart)

    def with_noise(self, seed: int, step: int, rows: Sequence[int] | Tensor) -> "Layout":
        """The same with dropout on; `rows` names the data-set row of each document."""
        per_document = torch.as_tensor(rows, device=self.positions.device)
        return replace(self, noise=Noise(seed, step, per_document[self.document_of], self.positions))

    @property
    def total(self) -> int:
        return sum(self.documents)

    @cached_property
    def document_of(self) -> Tensor:
        """(T,) index of the document each token belongs to."""
        counts = torch.tensor(self.documents, dtype=torch.int64, device=self.positions.device)
        return torch.repeat_interleave(torch.arange(len(self.documents), device=counts.device), counts)

    @cached_property
    def starts(self) -> Tensor:
        """(D,) index of the first token of each document in the flat row."""
        counts = torch.tensor(self.documents, dtype=torch.int64, device=self.positions.device)
        return counts.cumsum(0) - counts

    @cached_property
    def offsets(self) -> Tensor:
        """(T,) index of each token within its document in this pass (0 for the first, cached or not)."""
        return torch.arange(self.total, device=self.positions.device) - self.starts[self.document_of]

    @cached_property
    def last(self) -> Tensor:
        """(D,) index of the last token of each document in the flat row."""
        counts = torch.tensor(self.documents, dtype=torch.int64, device=self.positions.device)
        return counts.cumsum(0) - 1

    def at(self, places: Tensor) -> "Layout":
        """The tokens at these places (N,) alone, for what acts on each token by itself; they keep route and noise."""
        if places is self.last and len(places) == self.total:
            return self  # a token a document: the layout, and with it the route, stays the same object
        positions, route, noise = self.positions[places], self.route, self.noise
        return Layout(
            documents=(len(places),),
            positions=positions,
            route=None if route is None else route[places],
            noise=None if noise is None else replace(noise, rows=noise.rows[places], positions=positions),
            apart=self.apart,
        )

    def filled(self, total: int) -> "Layout":
        """The layout with one more document behind, which nobody reads, so that there are `total` tokens in all."""
        extra = total - self.total
        if extra == 0:
            return self
        assert self.cache is None, "documents of a cache are given"
        positions = torch.cat([self.positions, torch.arange(extra, device=self.positions.device)])
        route = None if self.route is None else nn.functional.pad(self.route, (0, extra), value=-1)
        noise = self.noise
        if noise is not None:
            noise = replace(noise, rows=nn.functional.pad(noise.rows, (0, extra)), positions=positions)
        return Layout((*self.documents, extra), positions, None, route, noise)

    def lengthened(self, extra: int) -> tuple["Layout", Tensor]:
        """The layout with `extra` soft tokens before each document that begins here, and the places (T,) of the real
        tokens in it.  Positions of real tokens move up by `extra`; noise and route of a soft token are its document's.

        A document whose beginning the cache already holds gains none: its soft tokens are in the cache.
        """
        begins = [
            self.cache is None or length == 0 for length in (self.cache.lengths if self.cache else self.documents)
        ]
        counts = tuple(n + extra * begin for n, begin in zip(self.documents, begins, strict=True))
        layout = Layout.of(counts, cache=self.cache, device=self.positions.device)
        added = torch.tensor([extra * begin for begin in begins], device=self.positions.device)
        places = layout.starts[self.document_of] + added[self.document_of] + self.offsets
        first = self.starts[layout.document_of]
        route = None if self.route is None else self.route[first]
        noise = None if self.noise is None else self._lengthened_noise(layout, first)
        return replace(layout, route=route, noise=noise), places

    def _lengthened_noise(self, layout: "Layout", first: Tensor) -> Noise:
        assert self.noise is not None
        return replace(self.noise, rows=self.noise.rows[first], positions=layout.positions)
