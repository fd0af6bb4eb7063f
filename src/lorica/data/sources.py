"""A source, as a recipe names it, to the files behind it.

train.jsonl   notes.txt          a file; its ending says how it is read
corpus/       corpus/**/*.md     a folder, a glob; hidden files are left out
python:stdlib python:include     Python's own library and C headers
python:docstrings                docstrings of Python's library, each labelled with its module
images:photos                    a folder of images, each labelled with the folder that it is in
hub:owner/name[:config[:split]]  a data set of the hub (the `hub` extra)
"""

import fnmatch
import glob
import importlib.util
import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lorica.errors import DataError, did_you_mean

Kind = Literal["jsonl", "json", "csv", "tsv", "parquet", "text", "docstrings", "image"]
KINDS: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
TESTS = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})
NOT_LIBRARY = frozenset({"idlelib", "lib2to3", "turtledemo", "ensurepip", "distutils"})
"""Programs beside the library, and what later Pythons leave out."""


@dataclass(frozen=True)
class SourceFile:
    """One file. `name` is shown to people, `relative` is its path within its source, by which it is held out."""

    path: Path
    name: str
    relative: str
    named_alone: bool = False
    read_as: Kind | None = None

    @property
    def kind(self) -> Kind:
        return self.read_as or KINDS.get(self.path.suffix.lower(), "text")


@dataclass(frozen=True)
class HubSource:
    """A data set of the hub, which counts as one file."""

    dataset: str
    config: str | None = None
    split: str = "train"

    @property
    def name(self) -> str:
        return ":".join(part for part in ("hub", self.dataset, self.config, self.split) if part)

    relative = name


def resolve(source: str) -> tuple[SourceFile, ...] | tuple[HubSource]:
    """Every file of one source, in the order of their relative paths. Raises `DataError` when there is none."""
    scheme, _, rest = source.partition(":")
    if scheme == "hub":
        return (hub_source(rest),)
    files = tuple(_named(rest) if scheme == "python" else images(rest) if scheme == "images" else _on_disk(source))
    if not files:
        raise DataError(f"{source}: no files there; name a file, a folder or a glob that has some")
    kinds = {file.kind for file in files}
    if len(files) > 1 and "text" in kinds and len(kinds) > 1 and scheme != "python":
        raise DataError(
            f"{source}: plain text and {', '.join(sorted(kinds - {'text'}))} files lie together; use a glob"
        )
    return files


def hub_source(spec: str) -> HubSource:
    """`owner/name`, `owner/name:split` or `owner/name:config:split`."""
    match spec.split(":"):
        case [dataset] if dataset:
            return HubSource(dataset)
        case [dataset, split] if dataset and split:
            return HubSource(dataset, split=split)
        case [dataset, config, split] if dataset and config and split:
            return HubSource(dataset, config, split)
    raise DataError(f"hub:{spec}: write hub:owner/name, hub:owner/name:split or hub:owner/name:config:split")


def _on_disk(source: str) -> Iterable[SourceFile]:
    path = Path(source)
    if not os.path.lexists(path) and not glob.has_magic(source):
        raise DataError(f"{source}: no such file or folder{_near(path)}")
    if path.is_file():
        return [SourceFile(path, source, path.name, named_alone=True)]
    if path.is_dir():
        return under(path, source.rstrip("/"))
    if glob.has_magic(source):
        return _globbed(source)
    raise DataError(f"{source}: neither a file nor a folder; a link to nothing, or a device or pipe, has no rows")


def _near(path: Path) -> str:
    siblings = os.listdir(path.parent) if os.path.isdir(path.parent) else []
    return did_you_mean(path.name, siblings)


def under(root: Path, shown: str, pattern: str = "*", skip: frozenset[str] = frozenset()) -> Iterator[SourceFile]:
    """The files below a folder whose name fits, but for hidden ones and those in folders to skip."""
    found = []
    for folder, inner, names in os.walk(root):
        # Folders to skip are not entered: site-packages alone can hold more files than everything else.
        inner[:] = [name for name in inner if not name.startswith(".") and name not in skip]
        found += [Path(folder, name) for name in fnmatch.filter(names, pattern) if not name.startswith(".")]
    for path in sorted(found):
        # A link to nothing is read, so that it is told rather than passed over.
        if path.is_file() or path.is_symlink():
            inside = path.relative_to(root).as_posix()
            yield SourceFile(path, f"{shown}/{inside}", inside)


def images(folder: str) -> Iterator[SourceFile]:
    """The images in the folders of a folder, whose names are their labels.  DataError where it has none."""
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"images:{folder}: no such folder{_near(root)}")
    found = [file for file in under(root, f"images:{folder.rstrip('/')}") if file.path.suffix.lower() in IMAGES]
    loose = [file.name for file in found if "/" not in file.relative]
    if loose:
        raise DataError(f"{loose[0]}: an image in no folder of its own label; move it to {folder}/LABEL/")
    for file in found:
        yield replace(file, read_as="image")


def _globbed(pattern: str) -> Iterator[SourceFile]:
    fixed = []
    for part in Path(pattern).parts:
        if glob.has_magic(part):
            break
        fixed.append(part)
    root = Path(*fixed)
    for name in sorted(glob.glob(pattern, recursive=True)):
        if Path(name).is_file():
            yield SourceFile(Path(name), name, Path(name).relative_to(root).as_posix())


def _named(name: str) -> Iterable[SourceFile]:
    if name not in NAMED:
        known = [f"python:{each}" for each in NAMED]
        raise DataError(f"python:{name}: the named sources are {', '.join(known)}{did_you_mean(name, NAMED)}")
    return NAMED[name]()


def _stdlib() -> Iterator[SourceFile]:
    return under(Path(sysconfig.get_path("stdlib")), "python:stdlib", "*.py", skip=TESTS)


def _docstrings() -> Iterator[SourceFile]:
    for file in under(Path(sysconfig.get_path("stdlib")), "python:docstrings", "*.py", skip=TESTS | NOT_LIBRARY):
        if not file.relative.startswith("_"):
            yield replace(file, read_as="docstrings")


def _include() -> Iterator[SourceFile]:
    """Python's headers, or c10's from torch where a distribution ships Python without them."""
    root = Path(sysconfig.get_path("include"))
    if (root / "Python.h").is_file():
        return under(root, "python:include", "*.h")
    torch = importlib.util.find_spec("torch")
    for folder in (torch and torch.submodule_search_locations) or []:
        return under(Path(folder) / "include" / "c10", "python:include", "*.h")
    return iter(())


NAMED: dict[str, Callable[[], Iterable[SourceFile]]] = {
    "stdlib": _stdlib,
    "include": _include,
    "docstrings": _docstrings,
}
