"""merge: the base with the adapter folded in, written as a checkpoint, shard by shard."""

from pathlib import Path
from shutil import copyfile
from typing import Any

from lorica import budget, durable
from lorica.adapter import AdapterFile, Merged, load, merge_checkpoint, read
from lorica.adapter.merge_checkpoint import Onto
from lorica.adapter.origin import loading_of
from lorica.api.recorded import base_of
from lorica.api.tasked import recorded_head
from lorica.models import load_base
from lorica.models.folder import CONFIG, folder_of
from lorica.models.loading import parse_dtype
from lorica.models.quiet import quiet
from lorica.models.stored import Stored


def merge(
    adapter: str | Path,
    out: str | Path,
    *,
    model: str | None = None,
    dtype: str | None = None,
    onto: Onto = "dequantised",
    untrained: bool = False,
    other_base: bool = False,
) -> Merged:
    """Writes a new folder that transformers loads; never two copies of the model in memory.

    model                   the base, where the one that the adapter records is not to be used
    dtype                   the type that weights are written in; None: as the base is stored
    onto                    of an adapter trained on a quantised base: `dequantised`, the numbers it was trained beside,
                            in 16 bit; or `original`, the base's own.  `outputs` says how far the answers move
    untrained, other_base   as in `load`: an adapter without effect or not finished, or for another base, is accepted

    The merged model answers a probe, and must answer as base and adapter do.  That takes the whole model in memory, and
    is left out, and said, where it has no room.  An adapter with a head is merged in memory: its model has tensors that
    no shard of the base holds.
    """
    file = read(adapter)
    base = model or base_of(adapter, file)
    head = recorded_head(file.manifest)
    if head is not None:
        form = {} if onto == "original" else loading_of(file.manifest)
        whole = load_base(base, dtype=dtype, device="cpu", head=head, **form)
        return _with_head(base, whole, file, out, untrained=untrained, other_base=other_base)
    short = without_room(folder_of(base), dtype)
    accepted = {"untrained": untrained, "other_base": other_base}
    return merge_checkpoint(base, file, out, dtype=dtype, onto=onto, unprobed=short, **accepted)


def _with_head(
    base: str, whole: Any, file: AdapterFile, out: str | Path, *, untrained: bool, other_base: bool
) -> Merged:
    before = {name: tensor.detach().clone() for name, tensor in whole.state_dict().items()}
    attached = load(whole, file, untrained=untrained, other_base=other_base)
    attached.merge(untrained=untrained)
    moved = {name: float((t - before[name]).float().abs().max()) for name, t in whole.state_dict().items()}
    changes = {name: change for name, change in moved.items() if change}
    with durable.new_folder(out) as folder, quiet():
        whole.save_pretrained(folder.path)
        if whole.tokenizer is not None:
            whole.tokenizer.save_pretrained(folder.path)
        for reading in folder_of(base).glob("*processor_config.json"):
            copyfile(reading, folder.path / reading.name)
        size = sum(path.stat().st_size for path in folder.path.iterdir())
    most = max(changes, key=lambda name: changes[name], default="")
    return Merged(
        folder=str(out),
        base=str(base),
        adapter=file.where,
        weights=len(changes),
        largest_change=changes.get(most, 0.0),
        changed_most=most,
        bytes=size,
        outputs=attached.merged,
        unprobed=None if attached.merged else "since nothing is known of what this base reads",
    )


def class_of(checkpoint: str | Path) -> str:
    """The class of transformers that loads a merged checkpoint as what it is: another would leave its head behind."""
    config: Any = durable.read_json(Path(checkpoint) / CONFIG)
    return (config.get("architectures") or ["AutoModelForCausalLM"])[0]


def without_room(base: Path, dtype: str | None) -> str | None:
    stored, asked = Stored(base), parse_dtype(dtype)
    needed = sum(path.stat().st_size for path in stored.files)
    needed *= 1 if asked is None else asked.itemsize / stored.dtype.itemsize
    free = budget.machine("cpu").available
    if needed < free or not free:
        return None
    return f"since it takes {needed / 1e9:.1f} GB of memory, of which {free / 1e9:.1f} are free"
