"""Lorica broken in one known way each: what the controls run on, and must find."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from campaign.living_run import Wandering
from lorica import durable
from lorica.adapter import Attached
from lorica.cli import entry
from lorica.models import generators
from lorica.train import checkpoint
from lorica.train.optimizers.contract import ByName
from lorica.train.progress import Progress

Breakage = Callable[[], AbstractContextManager[None]]


def instead(owner: Any, name: str, broken: Any) -> Breakage:
    """While the block runs, `owner.name` is `broken`."""

    @contextmanager
    def breakage() -> Iterator[None]:
        real = owner.__dict__[name] if isinstance(owner, type) else getattr(owner, name)
        setattr(owner, name, broken)
        try:
            yield
        finally:
            setattr(owner, name, real)

    return breakage


def both(first: Breakage, second: Breakage) -> Breakage:
    @contextmanager
    def breakage() -> Iterator[None]:
        with first(), second():
            yield

    return breakage


def nothing(*_: Any, **__: Any) -> None:
    return None


def _close_without_sync(self: durable.Writer, *_: object) -> None:
    os.close(self._descriptor)


@contextmanager
def _named_first(target: Any, replace: bool = False) -> Iterator[durable.Folder]:
    target = Path(target)
    if replace and target.exists():
        durable.remove(target)
    durable._make_folders(target)
    folder = durable.Folder(target, target)
    yield folder
    folder.sync()


def _remove_then_rename(target: Path, draft: Path) -> None:
    durable.remove(target)
    os.rename(draft, target)
    durable._sync_folder(target.parent)


_save, _write_all, _truncate_after, _run = checkpoint.save, durable._write_all, durable.truncate_after, entry.run


def _prune_then_save(root: str | Path, step: int, *rest: Any, keep: int = 2, **words: Any) -> Path:
    for folder in checkpoint.folders(root):
        durable.remove(folder)
    return _save(root, step, *rest, keep=keep, **words)


def _manifest_then_files(root: str | Path, step: int, *rest: Any, **words: Any) -> Path:
    """A folder with its final name, its manifest in it, then the files: a marker that promises too early."""
    elsewhere = Path(root).with_name(f".{Path(root).name}.elsewhere")
    made = _save(elsewhere, step, *rest, **words)
    target = Path(root) / made.name
    durable._make_folders(target)
    for name in sorted(os.listdir(made)):  # MANIFEST.json sorts first
        with durable.Writer(target / name) as writer:
            writer.write((made / name).read_bytes())
    durable._sync_folder(target)
    durable._sync_folder(target.parent)
    durable._erase(elsewhere)
    checkpoint._prune(Path(root), words.get("keep", 2), {step})
    return target


def _unverified(folder: Path) -> Any:
    return durable.read_json(folder / checkpoint.MANIFEST)


def _write_some(descriptor: int, view: memoryview) -> None:
    with suppress(OSError):
        _write_all(descriptor, view)


def _run_and_exit_with_0(arguments: Any) -> int:
    _run(arguments)
    return 0


def _cut_torn_lines_alone(path: Any, step: int) -> durable.Cut:
    return _truncate_after(path, step + 1_000_000)


def _from_the_start(cls: type[Progress], state: Mapping[str, Any], best: Mapping[str, Any]) -> Progress:
    return cls(step=state["step"])


UNSYNCED_FILES = instead(durable.Writer, "__exit__", _close_without_sync)
UNSYNCED_FOLDERS = instead(durable, "_sync_folder", nothing)
NAMED_FIRST = instead(durable, "new_folder", _named_first)
OLD_REMOVED_FIRST = instead(durable, "_replace", _remove_then_rename)
PRUNED_FIRST = instead(checkpoint, "save", _prune_then_save)
MANIFEST_FIRST = instead(checkpoint, "save", _manifest_then_files)
UNVERIFIED = instead(checkpoint, "_verified_manifest", _unverified)
UNSETTLED = instead(durable, "sweep", lambda parent, name=None: [])
METRICS_UNSYNCED = instead(durable.JsonLines, "sync", nothing)
METRICS_UNCUT = instead(durable, "truncate_after", _cut_torn_lines_alone)
FAILURES_EXIT_WITH_0 = instead(entry, "run", _run_and_exit_with_0)
WRITE_ERRORS_SWALLOWED = instead(durable, "_write_all", _write_some)

FORGOTTEN = {
    "the optimiser's state": instead(ByName, "load_state", nothing),
    "the generators": instead(generators, "restore", nothing),
    "the adapter": instead(Attached, "load_state", nothing),
    "the state of the method's life": instead(Wandering, "load_state_dict", nothing),
    "the progress": instead(Progress, "of", classmethod(_from_the_start)),
}
"""What a resume could fail to restore."""
