"""Keys and values of the tokens already read, one entry a document."""

import torch
from torch import Tensor


class KVCache:
    """Per layer two tensors (D, capacity, heads_kv, d_head) that grow by doubling; `lengths[d]` tokens are valid.

    Every layer of one forward pass writes at the same places; `advance` moves the lengths once the pass is done.
    """

    apart = False

    def __init__(self, documents: int) -> None:
        self.lengths: list[int] = [0] * documents
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    def write(self, layer: int, rows: Tensor, columns: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values (T, heads_kv, d_head) at (rows, columns); returns all of the layer's."""
        needed = int(columns.max()) + 1 if len(columns) else 0
        for store, new in ((self._keys, keys), (self._values, values)):
            store[layer] = self._grown(store.get(layer), needed, new)
            store[layer][rows, columns] = new.detach()
        longest = max(needed, max(self.lengths, default=0))
        return self._keys[layer][:, :longest], self._values[layer][:, :longest]

    def _grown(self, stored: Tensor | None, needed: int, like: Tensor) -> Tensor:
        held = 0 if stored is None else stored.shape[1]
        if stored is not None and held >= needed:
            return stored
        grown = like.new_zeros(len(self.lengths), max(needed, 2 * held, 64), *like.shape[1:])
        if stored is not None:
            grown[:, :held] = stored
        return grown

    def advance(self, documents: tuple[int, ...]) -> None:
        """Count the tokens that the pass has added to each document."""
        self.lengths = [held + new for held, new in zip(self.lengths, documents, strict=True)]

    def keep(self, documents: list[int]) -> "KVCache":
        """The cache of these documents alone, for when others have finished."""
        kept = KVCache(len(documents))
        kept.lengths = [self.lengths[d] for d in documents]
        index = torch.tensor(documents, dtype=torch.int64)
        kept._keys = {layer: stored[index.to(stored.device)] for layer, stored in self._keys.items()}
        kept._values = {layer: stored[index.to(stored.device)] for layer, stored in self._values.items()}
        return kept
