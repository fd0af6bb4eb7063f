"""merge: the base with the adapter folded in, written as a checkpoint, shard by shard."""

from pathlib import Path

from lorica import budget
from lorica.adapter import Merged, merge_checkpoint, read
from lorica.api.recorded import base_of
from lorica.models.folder import folder_of
from lorica.models.stored import Stored


def merge(
    adapter: str | Path,
    out: str | Path,
    *,
    model: str | None = None,
    untrained: bool = False,
    other_base: bool = False,
) -> Merged:
    """Writes a new folder that transformers loads; never two copies of the model in memory.

    model                   the base, where the one that the adapter records is not to be used
    untrained, other_base   as in `load`: an adapter without effect or not finished, or for another base, is accepted

    The merged model answers a probe, and must answer as base and adapter do.  That takes the whole model in memory, and
    is left out, and said, where it has no room.
    """
    file = read(adapter)
    base = model or base_of(adapter, file)
    return merge_checkpoint(
        base, file, out, untrained=untrained, other_base=other_base, unprobed=_without_room(folder_of(base))
    )


def _without_room(base: Path) -> str | None:
    needed = sum(path.stat().st_size for path in Stored(base).files)
    free = budget.machine("cpu").available
    if needed < free or not free:
        return None
    return f"since it takes {needed / 1e9:.1f} GB of memory, of which {free / 1e9:.1f} are free"
