"""Shelf: the adapters that are served, by name.

    load     a new name;   replace   a new generation under a name: requests in flight finish with the old one
    unload   the name is gone at once, the generation when the last request in flight has ended

Nothing is served that was not verified, and nothing under a name but what was loaded under it.
"""

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lorica.adapter import AdapterFile, Bank, read
from lorica.adapter.mixes import Choice
from lorica.errors import AdapterError, RequestError, UnknownAdapterError, did_you_mean
from lorica.serve.engine.generation import Described, Generation, Kept
from lorica.serve.engine.lease import Lease
from lorica.serve.engine.tiers import Tiers, in_memory
from lorica.serve.engine.verified import Verifier, digest_of

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Shelf:
    """root           under which folders are found by name, where they are asked for by others
    host_bytes     of adapters in the host's memory, None for all of them
    device_bytes   of adapters on the device, None for all of them
    """

    def __init__(
        self,
        bank: Bank,
        *,
        root: Path | None = None,
        host_bytes: int | None = None,
        device_bytes: int | None = None,
    ) -> None:
        self.bank: Bank | None = bank
        self.root = root
        self._verified = Verifier(bank.model)
        self._tiers = Tiers(bank, host_bytes, device_bytes, _read_again)
        self._lock = self._tiers.lock
        self._names: dict[str, Kept] = {}
        self._loading: dict[str, int] = {}
        self._numbers: dict[str, int] = {}

    def load(self, name: str, folder: Path) -> Generation:
        """The adapter of a folder under a new name; with a root, of the folder of this name in it.  Waits until ready.

        AdapterError where the name is taken, or the adapter does not check out: it then is not served at all.
        RequestError for a name or a folder that cannot be.
        """
        return self.load_own(name, self._under_root(folder))

    def replace(self, name: str, folder: Path) -> Generation:
        """The same under a name that is served, else UnknownAdapterError.  After any error the old one is served on."""
        return self.replace_own(name, self._under_root(folder))

    def load_own(self, name: str, folder: Path) -> Generation:
        """`load` from a folder anywhere: for whoever runs the server, never for its clients."""
        with self._loads(name, taken=False):
            kept = self._made(name, folder)
            with self._lock:
                self._names[name] = kept
        return kept.generation

    def replace_own(self, name: str, folder: Path) -> Generation:
        """`replace` from a folder anywhere: for whoever runs the server, never for its clients."""
        with self._loads(name, taken=True):
            kept = self._made(name, folder)
            with self._lock:
                before, self._names[name] = self._names[name], kept
        self._drain(before)
        return kept.generation

    def unload(self, name: str) -> None:
        """New requests get UnknownAdapterError from now on; returns when those in flight have ended."""
        with self._lock:
            self._require_still(name)
            kept = self._require(name)
            del self._names[name]
        self._drain(kept)
        with self._lock:
            self._lock.wait_for(lambda: kept not in self._tiers.kept)

    def list(self) -> tuple[Described, ...]:
        """Every generation that is loading, served or finishing requests, by name and number."""
        with self._lock:
            found = [kept.described for kept in self._tiers.kept]
            known = {(each.name, each.generation) for each in found}
            found += [_arriving(*each) for each in self._loading.items() if each not in known]
        return tuple(sorted(found, key=lambda each: (each.name, each.generation)))

    def lease(self, choice: Choice) -> Lease:
        with self._lock:
            if choice is None:
                return Lease()
            weights = {choice: 1.0} if isinstance(choice, str) else dict(choice)
            parts = tuple((self._require(name), float(weight)) for name, weight in weights.items())
            self._require_usable(parts)
            for kept, _ in parts:
                kept.in_flight += 1
        keys = {kept.generation.key: weight for kept, weight in parts}
        return Lease("+".join(sorted(weights)), next(iter(keys)) if isinstance(choice, str) else keys, parts)

    def give_back(self, lease: Lease) -> None:
        with self._lock:
            for kept, _ in lease.parts:
                kept.in_flight -= 1
                if not kept.in_flight and kept.state == "draining":
                    threading.Thread(target=self._tiers.leave, args=(kept,), daemon=True).start()

    def ready(self, lease: Lease) -> bool:
        return self._tiers.ready(lease)

    def pin(self, lease: Lease) -> int | None:
        return self._tiers.pin(lease)

    def unpin(self, lease: Lease) -> None:
        self._tiers.unpin(lease)

    def problem(self, lease: Lease) -> str:
        return next((kept.problem for kept, _ in lease.parts if kept.problem), "")

    def resident(self) -> tuple[int, int]:
        return self._tiers.resident()

    def on_change(self, tell: Callable[[], None]) -> None:
        self._tiers.tell = tell

    def _made(self, name: str, folder: Path) -> Kept:
        """Verified, with the Bank, on the device; nobody can ask for it yet."""
        if not folder.is_dir():
            raise AdapterError(f"{folder}: no such folder")
        verified = self._verified(folder)
        file, bank, most, number = verified.file, self._tiers.bank, self._tiers.device_bytes, self._loading[name]
        held = bank.laid_out(name, verified.plan, verified.modules)
        if most is not None and held.bytes > most:
            raise AdapterError(f"{folder}: {held.bytes} bytes, and adapters may hold {most} on the device")
        generation = Generation(
            name=name,
            number=number,
            folder=folder,
            digest=digest_of(file),
            method=" + ".join(method.kind for method in file.methods),
            rank=max((r for method in file.methods if isinstance(r := getattr(method, "r", None), int)), default=None),
            bytes=held.bytes,
        )
        bank.add(generation.key, held)
        kept = Kept(generation, in_memory(file), loaded_at=time.time())
        self._tiers.enter(kept)
        return kept

    @contextmanager
    def _loads(self, name: str, taken: bool) -> Iterator[None]:
        """The name is reserved meanwhile; `taken` as it has to be."""
        if not NAME.fullmatch(name):
            raise RequestError(f"{name!r} names no adapter: 1 to 64 letters, digits and . _ - that begin with no mark")
        with self._lock:
            self._require_still(name)
            if taken:
                self._require(name)
            elif name in self._names:
                raise AdapterError(f"{name!r} is served already; replace it, or choose another name")
            self._loading[name] = self._numbers[name] = self._numbers.get(name, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                del self._loading[name]

    def _drain(self, kept: Kept) -> None:
        with self._lock:
            kept.state = "draining"
            idle = not kept.in_flight
        if idle:
            self._tiers.leave(kept)

    def _under_root(self, folder: Path) -> Path:
        """A folder outside is answered as one that is not there, so that nobody learns what else there is."""
        if self.root is None:
            return folder
        root = self.root.resolve()
        with suppress(OSError, ValueError, RuntimeError):
            found = (root / folder).resolve()
            if found.is_relative_to(root) and found != root and found.is_dir():
                return found
        raise RequestError(f"{str(folder)[:200]!r}: no such adapter folder")

    def _require_still(self, name: str) -> None:
        if name in self._loading:
            raise AdapterError(f"{name!r} is being loaded; try again when it has been")

    def _require(self, name: str) -> Kept:
        if name not in self._names:
            raise UnknownAdapterError(f"no adapter {name!r} is served{did_you_mean(name, self._names)}")
        return self._names[name]

    def _require_usable(self, parts: Iterable[tuple[Kept, float]]) -> None:
        kept = [each for each, _ in parts]
        failed = [f"{each.generation.name}: {each.problem}; replace it" for each in kept if each.state == "failed"]
        if failed:
            raise AdapterError.of(failed)
        held, most = sum(each.generation.bytes for each in kept), self._tiers.device_bytes
        if most is not None and held > most:
            raise AdapterError(f"a blend of {held} bytes, and adapters may hold {most} on the device; blend fewer")


def _read_again(kept: Kept) -> AdapterFile:
    file = in_memory(read(kept.generation.folder))
    if digest_of(file) != kept.generation.digest:
        raise AdapterError(f"{kept.generation.folder}: changed since it was loaded; replace the adapter with it")
    return file


def _arriving(name: str, number: int) -> Described:
    return Described(
        name=name,
        generation=number,
        digest="",
        state="loading",
        rank=None,
        bytes=0,
        method="",
        tier="disk",
        in_flight=0,
        loaded_at=0.0,
    )
