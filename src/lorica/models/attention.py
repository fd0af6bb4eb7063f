"""Causal attention over packed documents: an object chosen once a pass for the layout at hand.

Padded               documents in a rectangle (D, L); keys may come from a cache or carry a learned prefix
Grouped              one rectangle for each run of documents of nearly one length
DocumentByDocument   one causal product a document, for few long ones: no padding, no mask
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, islice
from statistics import median_high
from typing import Protocol

import torch
from torch import Tensor, nn

from lorica.models.layout import Layout

Prefix = tuple[Tensor, Tensor]
"""Learned keys and values (P, heads_kv, d_head) that every token of every document sees.  With a Bank (D, P, ...)."""

WIDTH_STEP = 16
"""Tokens; see `kernels/few_shapes.py`."""
GROUP_SCORES = 128**2
"""Scores (query times key) that take as long as one more group does: its two dozen small calls, 0.5 ms a layer."""
MOST_RUNS = 48


class Attention(Protocol):
    """q (T, heads, d_head), k and v (T, heads_kv, d_head) of one layer -> (T, heads, d_head)."""

    def __call__(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None, prefix: Prefix | None
    ) -> Tensor: ...


def choose(layout: Layout, prefix: bool) -> Attention:
    """Document by document pays once most documents are long enough to hide its overhead (measured: 384 tokens)."""
    if layout.cache is not None or prefix or not layout.documents:
        return Padded(layout)
    if median_high(layout.documents) >= 384:
        return DocumentByDocument(layout)
    return Grouped.of(layout)


@dataclass(frozen=True, eq=False)
class Grouped:
    groups: tuple["Padded", ...]

    @classmethod
    def of(cls, layout: Layout) -> "Attention":
        """Few groups where documents come sorted by length, as a task's batches do."""
        counts = groups_of(layout.documents)
        if len(counts) == 1:
            return Padded(layout)
        documents = iter(layout.documents)
        parts = [tuple(islice(documents, count)) for count in counts]
        positions = layout.positions.split([sum(part) for part in parts])
        return cls(tuple(Padded(Layout(part, at)) for part, at in zip(parts, positions, strict=True)))

    def __call__(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None, prefix: Prefix | None
    ) -> Tensor:
        sizes = [group.layout.total for group in self.groups]
        parts = zip(self.groups, q.split(sizes), k.split(sizes), v.split(sizes), strict=True)
        return torch.cat([group(layer, q, k, v, window, prefix) for group, q, k, v in parts])


def groups_of(documents: Sequence[int]) -> list[int]:
    """How many documents, in order, go into each rectangle: the fewest scores in all, a group costing GROUP_SCORES."""
    runs = [(width, len(list(run))) for width, run in groupby(map(_rounded_width, documents))]
    if len(runs) > MOST_RUNS:
        return [len(documents)]
    best: list[tuple[int, list[int]]] = [(0, [])]
    for end in range(1, len(runs) + 1):
        best.append(min(_ending_with(best, runs, end)))
    return best[-1][1]


def _ending_with(
    best: Sequence[tuple[int, list[int]]], runs: Sequence[tuple[int, int]], end: int
) -> Iterator[tuple[int, list[int]]]:
    """Cost and counts of the groupings of the first `end` runs, for every beginning of the last group."""
    width = count = 0
    for start in reversed(range(end)):
        width, count = max(width, runs[start][0]), count + runs[start][1]
        cost, counts = best[start]
        yield cost + GROUP_SCORES + count * width**2, [*counts, count]


def _rounded_width(tokens: int) -> int:
    return -(-tokens // WIDTH_STEP) * WIDTH_STEP


@dataclass(frozen=True, eq=False)
class DocumentByDocument:
    layout: Layout

    def __call__(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None, prefix: Prefix | None
    ) -> Tensor:
        parts = (part.split(self.layout.documents) for part in (q, k, v))
        return torch.cat([_document(q, k, v, window) for q, k, v in zip(*parts, strict=True)])


def _document(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    q, k, v = (part.transpose(0, 1)[None] for part in (q, k, v))
    mask = None
    if window is not None and q.shape[2] > window:
        i = torch.arange(q.shape[2], device=q.device)
        mask = (i[:, None] >= i) & (i[:, None] - i < window)
    out = nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out[0].transpose(0, 1)


@dataclass(frozen=True, eq=False)
class Padded:
    layout: Layout

    def __call__(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None, prefix: Prefix | None
    ) -> Tensor:
        layout = self.layout
        if layout.cache is None:
            keys, values = self._rectangle(k), self._rectangle(v)
        else:
            keys, values = layout.cache.write(layer, layout.document_of, layout.positions, k, v)
        mask = self._mask(window, keys.shape[1])
        if prefix is not None:
            keys, values, mask = _prefixed(keys, values, mask, prefix)
        queries, keys, values = (part.transpose(1, 2) for part in (self._rectangle(q), keys, values))
        product = _by_matmul if q.device.type == "cpu" and q.dtype == torch.bfloat16 else _by_sdpa
        return product(queries, keys, values, mask).transpose(1, 2)[layout.document_of, layout.offsets]

    @cached_property
    def _longest(self) -> int:
        """The width of the rectangle: rounded where documents are ragged, so that a run meets few."""
        longest = max(self.layout.documents)
        ragged = self.layout.cache is None and len(set(self.layout.documents)) > 1
        return _rounded_width(longest) if ragged else longest

    def _rectangle(self, flat: Tensor) -> Tensor:
        """(T, ...) -> (D, L, ...), zeros where a document is shorter."""
        layout = self.layout
        if all(count == self._longest for count in layout.documents):
            return flat.view(len(layout.documents), self._longest, *flat.shape[1:])
        filled = flat.new_zeros(len(layout.documents), self._longest, *flat.shape[1:])
        return filled.index_put((layout.document_of, layout.offsets), flat)

    @cached_property
    def _positions(self) -> Tensor:
        return self._rectangle(self.layout.positions)

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


def _by_sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask[:, None], enable_gqa=q.shape[1] != k.shape[1]
    )


def _by_matmul(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Two batched products.  In bfloat16 on CPU they run 2.7x faster than the flash kernel, forward and backward
    (32 documents of 256 tokens, 5 heads of 64, two cores)."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    hidden = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, float("-inf"))
    return scores.add_(hidden[:, None]).softmax(-1) @ v


def _prefixed(keys: Tensor, values: Tensor, mask: Tensor, prefix: Prefix) -> tuple[Tensor, Tensor, Tensor]:
    documents = keys.shape[0]
    before = [part.to(keys.dtype) for part in prefix]
    before = [part if part.dim() == 4 else part.expand(documents, *part.shape) for part in before]
    seen = mask.new_ones(mask.shape[0], mask.shape[1], before[0].shape[1])
    return torch.cat([before[0], keys], 1), torch.cat([before[1], values], 1), torch.cat([seen, mask], 2)
