"""Checkpoints of a run: the newest that verifies is the one to resume from.

    checkpoints/step-00000012/
        adapter.safetensors  optimizer.safetensors  ...   one file a group of tensors, bit for bit
        state.json                                        everything that is not a tensor
        MANIFEST.json                                     written last: size and SHA-256 of each file, and its own

A folder appears by one rename once everything in it is on the disk (`durable.new_folder`), and older ones go only when
enough newer ones have been read back and verify. Formats are safetensors and JSON: loading never runs code.
"""

import hashlib
import json
import platform
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorica import durable
from lorica.errors import CheckpointError, RunError

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = 1
MANIFEST = "MANIFEST.json"
STATE = "state.json"
TENSORS = ".safetensors"
STEP_FOLDER = re.compile(r"step-([0-9]{8,})")
CONTENT = {"schema", "step", "files", "identity", "environment"}
GROUP = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A run as it was after `step` optimiser steps: groups of named tensors on the CPU, and a JSON state."""

    step: int
    folder: Path
    tensors: Mapping[str, Mapping[str, "Tensor"]] = field(repr=False)
    state: Mapping[str, Any] = field(repr=False)
    identity: Mapping[str, Any]
    environment: Mapping[str, Any]

    def __str__(self) -> str:
        return f"step {self.step} ({self.folder})"

    def mismatches(self, identity: Mapping[str, Any]) -> list[str]:
        """What of a run's identity (config, base, data) is not what was saved: any of it makes a resume wrong."""
        return _unequal(self.identity, json.loads(durable.json_bytes(dict(identity), self.folder)))

    def drift(self) -> list[str]:
        """What of versions, machine and threads has changed since: a resume is then right, but not to the bit."""
        return _unequal(self.environment, environment())


def save(
    root: str | Path,
    step: int,
    tensors: Mapping[str, Mapping[str, "Tensor"]],
    state: Mapping[str, Any],
    *,
    keep: int = 2,
    protect: Collection[int] = (),
    identity: Mapping[str, Any] | None = None,
) -> Path:
    """Writes `root/step-<step>`, then prunes to the newest `keep` that verify, this one and the steps in `protect`.

    Groups of tensors become files of their name. Values that are not finite, a full disk, or any failure of the system
    are a `CheckpointError`, and every earlier checkpoint is then as it was.
    """
    root, folder = Path(root), Path(root) / f"step-{step:08d}"
    _require_valid(tensors, step, keep, folder)
    with _as_checkpoint_error():
        durable.require_space(root, sum(tensor.nbytes for group in tensors.values() for tensor in group.values()))
        with durable.new_folder(folder, replace=True) as draft:
            for name, group in tensors.items():
                draft.write_tensors(name + TENSORS, group, finite=True)
            draft.write_json(STATE, state)
            draft.write_bytes(MANIFEST, _manifest(step, draft.records(), identity or {}, folder))
        _prune(root, keep, {step, *protect})
    return folder


def newest(root: str | Path) -> tuple[Checkpoint | None, list[tuple[Path, str]]]:
    """The newest checkpoint of `root` that verifies, or None; and every newer one, with the reason it was skipped.

    Settles first what a crash left in `root`, so the caller holds the run's `durable.Lock`.  CheckpointError where the
    system cannot read one: what is in it is unknown, and going on without it could throw good work away.
    """
    skipped: list[tuple[Path, str]] = []
    with _as_checkpoint_error():
        durable.sweep(root)
    for folder in reversed(folders(root)):
        try:
            return load(folder), skipped
        except CheckpointError as error:
            if _is_refused_by_the_system(error):
                raise CheckpointError(f"{error}; try again, or remove {folder} to go on without it") from error
            skipped.append((folder, str(error).removeprefix(f"{folder}: ")))
    return None, skipped


def load(folder: str | Path) -> Checkpoint:
    """The checkpoint in a folder, every file checked against the manifest first; otherwise a `CheckpointError`."""
    folder = Path(folder)
    with _as_checkpoint_error():
        manifest = _verified_manifest(folder)
        groups = [name for name in manifest["files"] if name.endswith(TENSORS)]
        return Checkpoint(
            step=manifest["step"],
            folder=folder,
            tensors={name.removesuffix(TENSORS): durable.read_tensors(folder / name) for name in groups},
            state=durable.read_json(folder / STATE),
            identity=manifest["identity"],
            environment=manifest["environment"],
        )


def folders(root: str | Path) -> list[Path]:
    """The checkpoint folders of `root`, by step, verified or not."""
    found = [path for path in Path(root).glob("step-*") if STEP_FOLDER.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=_step_of)


def verifies(folder: str | Path) -> bool:
    """Whether every byte of a checkpoint is what was written."""
    try:
        _verified_manifest(Path(folder))
    except RunError:
        return False
    return True


def environment() -> dict[str, Any]:
    """What, beside a run's identity, decides its last bits."""
    import torch

    machine = f"{platform.system()} {platform.machine()}"
    return {**_packages(), "python": platform.python_version(), "machine": machine, "threads": torch.get_num_threads()}


@cache
def _packages() -> dict[str, str]:
    """Reading one version costs 6 ms, and a process does not change it."""
    return {name: version(name) for name in ("lorica", "torch", "numpy", "safetensors")}


def _require_valid(tensors: Mapping[str, Any], step: int, keep: int, folder: Path) -> None:
    problems = [
        f"{folder}: a group of tensors cannot be named {name!r}" for name in tensors if not GROUP.fullmatch(name)
    ]
    problems += [f"{folder}: a step is counted from 0, and {step} is not"] if step < 0 else []
    problems += [f"{folder}: at least one checkpoint is kept, and keep={keep}"] if keep < 1 else []
    if problems:
        raise CheckpointError.of(problems)


def _manifest(step: int, files: Mapping[str, Any], identity: Mapping[str, Any], where: Path) -> bytes:
    content = {
        "schema": SCHEMA,
        "step": step,
        "files": dict(files),
        "identity": dict(identity),
        "environment": environment(),
    }
    return _sealed(content, where)


def _sealed(content: Mapping[str, Any], where: Path) -> bytes:
    """The manifest's bytes: its content in one fixed spelling, with the SHA-256 of that spelling added."""
    digest = hashlib.sha256(durable.json_bytes(content, where, sort_keys=True)).hexdigest()
    return durable.json_bytes({**content, "sha256": digest}, where, sort_keys=True)


def _verified_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    with durable.reporting(path):
        there = path.is_file()
    if not there:
        raise CheckpointError(f"{folder}: has no {MANIFEST}, so it was never completed")
    manifest = durable.read_json(path)
    if isinstance(manifest, dict) and manifest.get("schema", SCHEMA) != SCHEMA:
        raise CheckpointError(f"{folder}: has schema {manifest['schema']!r}, and this version reads {SCHEMA}")
    if not _is_sealed(manifest, path):
        raise CheckpointError(f"{folder}: {MANIFEST} does not have its recorded SHA-256")
    reasons = durable.differences(folder, manifest["files"])
    if STEP_FOLDER.fullmatch(folder.name) and _step_of(folder) != manifest["step"]:
        reasons.append(f"{MANIFEST} is that of step {manifest['step']}")
    if reasons:
        raise CheckpointError(f"{folder}: {'; '.join(reasons)}")
    return manifest


def _is_sealed(manifest: Any, path: Path) -> bool:
    if not isinstance(manifest, dict) or manifest.keys() != CONTENT | {"sha256"}:
        return False
    content = {key: manifest[key] for key in CONTENT}
    with durable.reporting(path):
        return path.read_bytes() == _sealed(content, path)


def _prune(root: Path, keep: int, protect: Collection[int]) -> None:
    """Goes from the newest down; what is left when `keep` have verified is removed, whether it verifies or not."""
    verified = 0
    for folder in reversed(folders(root)):
        if verified < keep:
            verified += verifies(folder)
        elif _step_of(folder) not in protect:
            durable.remove(folder)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _unequal(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    free = {name for name in saved.keys() - current.keys() if name.startswith("train.")}  # compared no longer
    names = sorted((saved.keys() | current.keys()) - free)
    return [
        f"{name}: saved with {saved.get(name)!r}, now {current.get(name)!r}"
        for name in names
        if saved.get(name) != current.get(name)
    ]


def _is_refused_by_the_system(error: BaseException | None) -> bool:
    """Whether an OSError is the cause, rather than what was read."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__
    return error is not None


@contextmanager
def _as_checkpoint_error() -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except RunError as error:
        raise CheckpointError(str(error)) from error
