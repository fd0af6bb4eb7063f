"""Adapters that come and go while the server runs, by the name of a folder under one root.

A request names a folder, never a path.  A name that leads nowhere and one that leads out of the root get one answer.
"""

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from lorica.adapter.manifest import NAME as MANIFEST
from lorica.errors import AdapterError
from lorica.serve.engine import Described
from lorica.serve.http.choosing import Names, Origin
from lorica.serve.http.errors import AGAIN, ApiError
from lorica.serve.http.logs import Log
from lorica.serve.http.metrics import Metrics

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
CHATS = ("messages", "sharegpt", "alpaca")
CONFIG, ADAPTER = "adapter_config.json", "adapter"
THREADS = 8
PENDING = 16
"""Loads and unloads that may wait at once: an unload waits for the requests in flight."""
LARGEST_MANIFEST = 2 << 20
T = TypeVar("T")


class Keeps(Protocol):
    """`lorica.serve.engine.Shelf`, whose root is the same: `folder` lies under it."""

    def load(self, name: str, folder: Path) -> Any: ...

    def replace(self, name: str, folder: Path) -> Any: ...

    def unload(self, name: str) -> None: ...


@dataclass(frozen=True)
class Root:
    """The one folder under which adapters are looked for."""

    path: Path

    def folder(self, name: str) -> Path:
        """The adapter's folder of this name, or of a run of this name, with nothing but files of its own in it.
        ApiError 404."""
        if NAME.fullmatch(name):
            root = self.path.resolve()
            found = adapter_in((root / name).resolve())
            inside = found.is_relative_to(root) and found != root and not found.is_symlink()
            if inside and found.is_dir() and _own_files(found):
                return found
        raise ApiError(404, "no adapter folder of that name under the adapters' root", code="adapter_not_found")


def adapter_in(folder: Path) -> Path:
    """A run's folder holds the adapter in one of its own."""
    inside = folder / ADAPTER
    return inside if not (folder / CONFIG).exists() and (inside / CONFIG).exists() else folder


def named(folder: Path) -> str:
    """What an adapter's folder is called: as the run that it is in."""
    return folder.parent.name if folder.name == ADAPTER else folder.name


def _own_files(folder: Path) -> bool:
    """Whether all that would be read are plain files inside; links may lead anywhere, pipes never end."""
    return all(not each.is_symlink() and (each.is_file() or each.is_dir()) for each in folder.iterdir())


@dataclass(eq=False)
class Loads:
    """keeps and root are None where adapters are those that the server was started with."""

    names: Names
    metrics: Metrics
    log: Log
    keeps: Keeps | None = None
    root: Root | None = None
    _threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(THREADS, "lorica-loads"))
    _locks: dict[str, asyncio.Lock] = field(default_factory=dict)
    _pending: int = 0

    async def load(self, name: str, folder: str | None, *, replace: bool) -> None:
        """Waits until it answers.  ApiError 400 (it does not check out), 404, 409 (the name is taken), 429."""
        keeps, root = self._open()
        _require_name(name)
        self.names.require_free(name)
        put = keeps.replace if replace else keeps.load
        async with self._turn(name):
            self._require(name, held=replace)
            found = await self._beside(lambda: root.folder(folder or name))
            inside = found.relative_to(root.path.resolve())
            with in_words(root):
                await self._timed("replace" if replace else "load", name, lambda: put(name, inside))
            self.names.origins[name] = await self._beside(lambda: origin_of(found))

    async def unload(self, name: str) -> None:
        """Waits for the requests that it still answers.  ApiError 404, 429."""
        keeps, root = self._open()
        async with self._turn(name):
            self._require(name, held=True)
            with in_words(root):
                await self._timed("unload", name, lambda: keeps.unload(name))
            self.names.origins.pop(name, None)

    def described(self, name: str) -> Described:
        """ApiError 404."""
        for each in self.names.listed():
            if each.name == name:
                return each
        raise ApiError(404, "no adapter of that name is served", param="name", code="adapter_not_found")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _open(self) -> tuple[Keeps, Root]:
        if self.keeps is None:
            raise ApiError(400, "this server keeps the adapters that it was started with")
        if self.root is None:
            raise ApiError(400, "this server was started without a root of adapters (--adapters-root)")
        return self.keeps, self.root

    def _turn(self, name: str) -> "Turn":
        if self._pending >= PENDING:
            raise ApiError(429, "too many adapters are coming and going; ask again in a moment", headers=AGAIN)
        return Turn(self, name)

    def _require(self, name: str, held: bool) -> None:
        if not held and any(each.name == name and each.state != "failed" for each in self.names.listed()):
            raise ApiError(409, f"the adapter {name!r} is served already; replace it", param="name")
        if held:
            self.described(name)

    async def _timed(self, what: str, name: str, work: Callable[[], object]) -> None:
        started, result = time.monotonic(), "failed"
        try:
            await self._beside(work)
            result = "done"
        finally:
            seconds = time.monotonic() - started
            self.metrics.loaded(what, result, seconds)
            self.log.write("adapter", what=what, name=name, result=result, seconds=round(seconds, 4))

    async def _beside(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


@dataclass(frozen=True)
class Turn:
    """One change of a name at a time, in the order in which they came."""

    loads: Loads
    name: str

    async def __aenter__(self) -> None:
        self.loads._pending += 1
        try:
            await self.loads._locks.setdefault(self.name, asyncio.Lock()).acquire()
        except BaseException:
            self.loads._pending -= 1
            raise

    async def __aexit__(self, *_: object) -> None:
        self.loads._pending -= 1
        lock = self.loads._locks[self.name]
        lock.release()
        if not self.loads._pending:
            self.loads._locks.clear()


@contextmanager
def in_words(root: Root) -> Iterator[None]:
    """What is wrong with an adapter, without the paths of this machine."""
    try:
        yield
    except AdapterError as error:
        said = str(error)
        for path in (f"{root.path.resolve()}/", f"{root.path}/"):
            said = said.replace(path, "")
        raise ApiError(400, said, code="adapter_refused") from None


def _require_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise ApiError(
            400, "a name is a letter or digit, and up to 63 letters, digits, dots, dashes and underscores", param="name"
        )


def origin_of(folder: Path) -> Origin:
    """What an adapter records of the rows that it was taught."""
    recorded = _recorded(folder)
    shape = _within(recorded, "data").get("shape")
    plain = isinstance(shape, str) and shape not in CHATS
    templated = _within(_within(recorded, "recipe"), "data").get("template") is not None
    return Origin(folder=named(folder), plain=plain, templated=templated and not plain)


def _recorded(folder: Path) -> Any:
    with suppress(OSError, ValueError):
        written = folder / MANIFEST
        if written.stat().st_size <= LARGEST_MANIFEST:
            return json.loads(written.read_text(encoding="utf-8"))
    return None


def _within(recorded: Any, key: str) -> Mapping[str, Any]:
    found = recorded.get(key) if isinstance(recorded, Mapping) else None
    return found if isinstance(found, Mapping) else {}
