"""merge: the base with the adapter folded in, written as a checkpoint, shard by shard."""

from pathlib import Path
from typing import Any

from lorica.adapter import merge_checkpoint, read
from lorica.api.recorded import base_of


def merge(adapter: str | Path, out: str | Path, *, model: str | None = None) -> Any:
    """Writes a new folder that transformers loads; never two copies of the model in memory.

    model: the base, where the one that the adapter records is not to be used.
    """
    return merge_checkpoint(model or base_of(adapter, read(adapter)), adapter, out)
