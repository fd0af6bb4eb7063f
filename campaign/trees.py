"""Folders as values: what is in one, whatever random words its drafts are called by, and a way back to it."""

import hashlib
import re
import shutil
from collections.abc import Collection
from pathlib import Path

ASIDE = re.compile(r"(\.(?:tmp|old)-.+)-\d+-[0-9a-f]{8}\Z")


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file with its bytes, every folder with None, by its path inside `folder`."""
    found = sorted(folder.rglob("*"))
    return {path.relative_to(folder).as_posix(): None if path.is_dir() else path.read_bytes() for path in found}


def fingerprint(folder: Path) -> str:
    """The same for two folders that a recovery cannot tell apart: drafts differ in process number and random word."""
    digest = hashlib.sha256()
    for name, data in sorted((_plain(name), data) for name, data in contents(folder).items()):
        kind = "folder" if data is None else str(len(data))
        digest.update(f"{name}\0{kind}\0".encode() + (data or b""))
    return digest.hexdigest()


def _plain(name: str) -> str:
    return "/".join(ASIDE.sub(r"\1", part) for part in name.split("/"))


def restore(folder: Path, original: Path, staying: Collection[str] = ()) -> None:
    """`folder` holds again what `original` does; the files in `staying`, which a process holds open, are left."""
    for path in folder.iterdir():
        if path.name not in staying:
            erase(path)
    for path in original.iterdir():
        if path.name not in staying:
            copy(path, folder / path.name)


def copy(source: Path, target: Path) -> Path:
    if source.is_dir():
        shutil.copytree(source, target, copy_function=shutil.copyfile)
    else:
        shutil.copyfile(source, target)
    return target


def erase(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
