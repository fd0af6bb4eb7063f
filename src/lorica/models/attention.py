"""Causal attention over packed documents: an object chosen once a pass for the layout at hand.

Packed      whole documents as they lie, where a kernel of ours reads them so
Grouped     whole documents, in one rectangle (D, L) for each run of documents of nearly one length
Padded      documents in one rectangle; keys may come from a cache or carry a learned prefix
InBlocks    new tokens of an engine's documents, whose keys lie in blocks
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, islice
from typing import Protocol

import torch
from torch import Tensor

from lorica.errors import ModelError
from lorica.kernels import causal_attention, document_attention, is_native, paged_attention, sdpa
from lorica.models.layout import Layout
from lorica.models.paged import Paged

Prefix = tuple[Tensor, Tensor]
"""Learned keys and values (P, heads_kv, d_head) that every token of every document sees.  With a Bank (D, P, ...)."""

WIDTH_STEP = 16
"""Tokens; see `kernels/few_shapes.py`."""
GROUP_SCORES = 128**2
"""Scores (query times key) that take as long as one more group does: its two dozen small calls, 0.5 ms a layer."""
MOST_RUNS = 48
"""Of documents of nearly one length.  Where there are more, lengths count as nearly one from farther apart."""


class Attention(Protocol):
    """q (T, heads, d_head), k and v (T, heads_kv, d_head) of one layer -> (T, heads, d_head)."""

    def __call__(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None, prefix: Prefix | None
    ) -> Tensor: ...


def choose(layout: Layout, like: Tensor, prefix: bool) -> Attention:
    """For queries of the device and dtype of `like`.  ModelError for a learned prefix before documents in blocks."""
    if isinstance(layout.cache, Paged):
        if prefix:
            raise ModelError("an engine reads no documents behind a learned prefix; generate with it by itself")
        return InBlocks(layout, layout.cache)
    if layout.cache is not None or prefix or not layout.documents:
        return Padded(layout)
    return Packed(layout.documents) if is_native("attention", like) else Grouped(rectangles_of(layout))


@dataclass(frozen=True, eq=False)
class Packed:
    documents: tuple[int, ...]

    def __call__(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None, prefix: Prefix | None
    ) -> Tensor:
        assert prefix is None
        return document_attention(q, k, v, self.documents, window=window)


@dataclass(frozen=True, eq=False)
class InBlocks:
    layout: Layout
    cache: Paged

    def __call__(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None, prefix: Prefix | None
    ) -> Tensor:
        assert prefix is None
        layout, blocks = self.layout, self.cache.blocks.layer(layer)
        return paged_attention(q, k, v, blocks, self.cache.table, layout.document_of, layout.positions, window)


@dataclass(frozen=True, eq=False)
class Grouped:
    groups: tuple["Rectangle", ...]

    def __call__(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None, prefix: Prefix | None
    ) -> Tensor:
        assert prefix is None
        sizes = [sum(group.documents) for group in self.groups]
        parts = zip(self.groups, q.split(sizes), k.split(sizes), v.split(sizes), strict=True)
        done = [
            group.flat(causal_attention(group.filled(q), group.filled(k), group.filled(v), window))
            for group, q, k, v in parts
        ]
        return done[0] if len(done) == 1 else torch.cat(done)


def rectangles_of(layout: Layout) -> tuple["Rectangle", ...]:
    """Few where documents come sorted by length, as a task's batches do."""
    documents, device = iter(layout.documents), layout.positions.device
    return tuple(Rectangle.of(tuple(islice(documents, n)), device) for n in groups_of(layout.documents))


def groups_of(documents: Sequence[int]) -> list[int]:
    """How many documents, in order, go into each rectangle: the fewest scores in all, a group costing GROUP_SCORES."""
    runs, step = _runs(documents, WIDTH_STEP), WIDTH_STEP
    while len(runs) > MOST_RUNS and step < max(documents):
        step *= 2
        runs = _runs(documents, step)
    if len(runs) > MOST_RUNS:
        return [len(documents)]
    best: list[tuple[int, list[int]]] = [(0, [])]
    for end in range(1, len(runs) + 1):
        best.append(min(_ending_with(best, runs, end)))
    return best[-1][1]


def _runs(documents: Sequence[int], step: int) -> list[tuple[int, int]]:
    """Width and number of the documents that follow one another and are of one length in steps of `step`."""
    return [(width, len(list(run))) for width, run in groupby(_rounded(count, step) for count in documents)]


def _rounded(tokens: int, step: int) -> int:
    return -(-tokens // step) * step


def _ending_with(
    best: Sequence[tuple[int, list[int]]], runs: Sequence[tuple[int, int]], end: int
) -> Iterator[tuple[int, list[int]]]:
    """Cost and counts of the groupings of the first `end` runs, for every beginning of the last group."""
    width = count = 0
    for start in reversed(range(end)):
        width, count = max(width, runs[start][0]), count + runs[start][1]
        cost, counts = best[start]
        yield cost + GROUP_SCORES + count * width**2, [*counts, count]


@dataclass(frozen=True, eq=False)
class Rectangle:
    """Tokens (T, ...) as (D, L, ...), zeros where a document is shorter.

    places (T, 2), of each token, None where all documents are of length L.
    """

    documents: tuple[int, ...]
    length: int
    places: tuple[Tensor, Tensor] | None

    @classmethod
    def of(cls, documents: tuple[int, ...], device: torch.device, rounded: bool = True) -> "Rectangle":
        """L is rounded where documents are ragged, so that a run meets few shapes."""
        longest = max(documents, default=0)
        if all(count == longest for count in documents):
            return cls(documents, longest, None)
        own = Layout.of(documents, device=device)
        length = _rounded(longest, WIDTH_STEP) if rounded else longest
        return cls(documents, length, (own.document_of, own.offsets))

    def filled(self, flat: Tensor) -> Tensor:
        shape = (len(self.documents), self.length, *flat.shape[1:])
        return flat.view(shape) if self.places is None else flat.new_zeros(shape).index_put(self.places, flat)

    def flat(self, filled: Tensor) -> Tensor:
        return filled.flatten(0, 1) if self.places is None else filled[self.places]


@dataclass(frozen=True, eq=False)
class Padded:
    layout: Layout

    def __call__(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None, prefix: Prefix | None
    ) -> Tensor:
        layout, rectangle = self.layout, self._rectangle
        if layout.cache is None:
            keys, values = rectangle.filled(k), rectangle.filled(v)
        else:
            assert not isinstance(layout.cache, Paged)
            keys, values = layout.cache.write(layer, layout.document_of, layout.positions, k, v)
        mask = self._mask(window, keys.shape[1])
        if prefix is not None:
            keys, values, mask = _prefixed(keys, values, mask, prefix)
        queries, keys, values = (part.transpose(1, 2) for part in (rectangle.filled(q), keys, values))
        product = _by_matmul if q.device.type == "cpu" and q.dtype == torch.bfloat16 else sdpa
        return rectangle.flat(product(queries, keys, values, mask[:, None]).transpose(1, 2))

    @cached_property
    def _rectangle(self) -> Rectangle:
        return Rectangle.of(self.layout.documents, self.layout.positions.device, rounded=self.layout.cache is None)

    @cached_property
    def _positions(self) -> Tensor:
        return self._rectangle.filled(self.layout.positions)

    @cached_property
    def _mask_of(self) -> dict[tuple[int | None, int], Tensor]:
        return {}

    def _mask(self, window: int | None, keys: int) -> Tensor:
        """(D or 1, L, keys): the token at position p sees the positions p - window < j <= p.  One mask for all layers.

        Without a cache it is the same for every document: the padding behind a document lies in its future.
        """
        if (window, keys) not in self._mask_of:
            j = torch.arange(keys, device=self.layout.positions.device)
            behind = (j if self.layout.cache is None else self._positions)[..., None] - j
            mask = behind >= 0 if window is None else (behind >= 0) & (behind < window)
            self._mask_of[window, keys] = mask.view(-1, *mask.shape[-2:])
        return self._mask_of[window, keys]


def _by_matmul(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Two batched products.  In bfloat16 on CPU they run 2.7x faster than the flash kernel, forward and backward
    (32 documents of 256 tokens, 5 heads of 64, two cores)."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    hidden = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, float("-inf"))
    return scores.add_(hidden).softmax(-1) @ v


def _prefixed(keys: Tensor, values: Tensor, mask: Tensor, prefix: Prefix) -> tuple[Tensor, Tensor, Tensor]:
    documents = keys.shape[0]
    before = [part.to(keys.dtype) for part in prefix]
    before = [part if part.dim() == 4 else part.expand(documents, *part.shape) for part in before]
    seen = mask.new_ones(mask.shape[0], mask.shape[1], before[0].shape[1])
    return torch.cat([before[0], keys], 1), torch.cat([before[1], values], 1), torch.cat([seen, mask], 2)
