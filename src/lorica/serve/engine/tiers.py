"""Tiers: where each generation lies, in bytes: on the device with the Bank, in the host's memory, or in its folder.

    disk  <->  host  <->  device          what has not been used for longest goes down first

It is brought up in a thread of its own, never by the engine's.  What answers a request stays where it is.  Where all
that is on the device answers requests, the generation that has been there longest takes no new ones until it can go.
"""

import itertools
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from lorica.adapter import AdapterFile, Bank
from lorica.adapter.bank import Held
from lorica.errors import LoricaError
from lorica.serve.engine.generation import Kept
from lorica.serve.engine.lease import Lease

HOLD = 1.0
"""Seconds that a generation stays on the device at least, once it was brought for requests."""
LOOK = 0.02
"""Seconds between two looks for room where there was none."""
BRINGING = 2
"""Files brought up at a time: each takes a core for a while.  What was laid out before takes a millisecond."""


class Tiers:
    """read   gives the file of a generation whose folder is all that is left of it"""

    def __init__(
        self, bank: Bank, host_bytes: int | None, device_bytes: int | None, read: Callable[[Kept], AdapterFile]
    ) -> None:
        self.bank, self.host_bytes, self.device_bytes = bank, host_bytes, device_bytes
        self.lock = threading.Condition(threading.RLock())
        self.kept: list[Kept] = []
        self.tell: Callable[[], None] = lambda: None
        self._read = read
        self._in_host = next(bank.model.parameters()).device.type == "cpu"
        """The device is the host: what leaves the Bank stays laid out, and what the Bank holds is held once."""
        self._uses = itertools.count(1)
        self._bringing: list[Kept] = []
        self._look_at = 0.0
        self._yielding: tuple[Kept, Kept] | None = None
        """(the generation that takes no new requests, the one that it makes room for)"""

    def enter(self, kept: Kept) -> None:
        """One that the Bank has just taken; others leave the device where there is too much on it."""
        with self.lock:
            kept.tier, kept.used, kept.since = "device", next(self._uses), time.monotonic()
            self.kept.append(kept)
        self._trim()

    def leave(self, kept: Kept) -> None:
        """For ever.  Waits while it is being moved; nothing holds it any more."""
        with self.lock:
            self.lock.wait_for(lambda: not kept.moving)
            on_device = kept.tier == "device"
            kept.moving = True
        if on_device:
            self.bank.remove(kept.generation.key)
        with self.lock:
            self.kept.remove(kept)
            self._changed()

    def ready(self, lease: Lease) -> bool:
        if not lease.parts:
            return True
        with self.lock:
            missing = [kept for kept, _ in lease.parts if kept.tier != "device" or kept.moving]
            for kept, _ in lease.parts:
                kept.used = next(self._uses)
                kept.fresh = kept.fresh or bool(missing)
            for kept in missing:
                self._ask_for(kept)
            return not missing and not self._is_yielding(lease)

    def pin(self, lease: Lease) -> int | None:
        with self.lock:
            if any(kept.tier != "device" or kept.moving for kept, _ in lease.parts):
                return None
            for kept, _ in lease.parts:
                kept.pins += 1
                kept.fresh = False
            return self.bank.number(lease.choice)

    def unpin(self, lease: Lease) -> None:
        with self.lock:
            for kept, _ in lease.parts:
                kept.pins -= 1
            self._look_at = 0.0

    def resident(self) -> tuple[int, int]:
        with self.lock:
            sizes = [kept.generation.bytes for kept in self.kept if kept.tier == "device"]
        return len(sizes), sum(sizes)

    def _ask_for(self, kept: Kept) -> None:
        now = time.monotonic()
        if kept.moving or kept.state == "failed" or now < self._look_at or self._are_too_many(kept):
            return
        if not self._could_hold(kept, now):
            self._look_at = now + LOOK
            self._find_one_to_yield(kept, now)
            return
        kept.moving = True
        self._bringing.append(kept)
        threading.Thread(target=self._bring, args=(kept,), name=f"lorica {kept.generation.key}", daemon=True).start()

    def _are_too_many(self, kept: Kept) -> bool:
        from_files = [each for each in self._bringing if not isinstance(each.file, Held)]
        return not isinstance(kept.file, Held) and len(from_files) >= BRINGING

    def _could_hold(self, kept: Kept, now: float) -> bool:
        if self.device_bytes is None:
            return True
        stays = [other for other in self.kept if other.tier == "device" and not self._may_go(other, now)]
        return self._bytes_of([*stays, *self._bringing, kept]) <= self.device_bytes

    def _find_one_to_yield(self, wanted: Kept, now: float) -> None:
        if self._yielding is not None and self._is_wanted(self._yielding[1]):
            return
        long = [kept for kept in self.kept if kept.pins and kept.tier == "device" and now - kept.since >= HOLD]
        self._yielding = (min(long, key=lambda kept: kept.since), wanted) if long else None

    def _is_yielding(self, lease: Lease) -> bool:
        if self._yielding is None or not self._is_wanted(self._yielding[1]):
            return False
        return any(kept is self._yielding[0] for kept, _ in lease.parts)

    @staticmethod
    def _is_wanted(kept: Kept) -> bool:
        return kept.in_flight > 0 and kept.tier != "device" and kept.state != "failed"

    def _bring(self, kept: Kept) -> None:
        problem = ""
        try:
            file = kept.file or self._read(kept)
            self._trim(room=kept.generation.bytes)
            self.bank.add(kept.generation.key, file)
        except Exception as error:
            problem = str(error) if isinstance(error, LoricaError) else f"{type(error).__name__}: {error}"
        with self.lock:
            self._bringing.remove(kept)
            kept.moving = False
            if problem:
                kept.state, kept.problem = "failed", problem
            else:
                kept.tier, kept.fresh, kept.since, kept.used = "device", True, time.monotonic(), next(self._uses)
            self._changed()
        self._trim()

    def _trim(self, room: int = 0) -> None:
        """Takes off the device what has not been used for longest, until what it may hold leaves `room` more bytes."""
        while (victim := self._one_too_many(room)) is not None:
            held = self.bank.remove(victim.generation.key)
            with self.lock:
                victim.file = held if self._in_host else victim.file
                victim.tier, victim.moving = "host" if victim.file else "disk", False
                self._changed()
        self._trim_host()

    def _one_too_many(self, room: int) -> Kept | None:
        with self.lock:
            on_device = [kept for kept in self.kept if kept.tier == "device"]
            if self.device_bytes is None or self._bytes_of(on_device) + room <= self.device_bytes:
                return None
            now = time.monotonic()
            free = [kept for kept in on_device if self._may_go(kept, now)]
            victim = min(free, key=lambda kept: kept.used, default=None)
            if victim is not None:
                victim.moving = True
            return victim

    @staticmethod
    def _may_go(kept: Kept, now: float) -> bool:
        awaited = kept.fresh and kept.in_flight > 0 and now - kept.since < HOLD
        return not kept.pins and not kept.moving and not awaited

    def _trim_host(self) -> None:
        """Files leave the host's memory where the device never gives a generation up, and where there are too many."""
        with self.lock:
            for kept in self.kept:
                if kept.tier == "device" and (self._in_host or self.device_bytes is None):
                    kept.file = None
            held = {kept: _size(kept.file) for kept in self.kept if kept.file is not None}
            total = sum(held.values())
            for kept in sorted(held, key=lambda kept: kept.used):
                if self.host_bytes is not None and total > self.host_bytes and not kept.in_flight:
                    total -= held[kept]
                    kept.file, kept.tier = None, "disk" if kept.tier == "host" else kept.tier

    @staticmethod
    def _bytes_of(several: Iterable[Kept]) -> int:
        return sum(kept.generation.bytes for kept in several)

    def _changed(self) -> None:
        self._look_at = 0.0
        self.lock.notify_all()
        self.tell()


def _size(file: AdapterFile | Held) -> int:
    return file.bytes if isinstance(file, Held) else sum(tensor.nbytes for tensor in file.tensors.values())


def in_memory(file: AdapterFile) -> AdapterFile:
    """With tensors of its own: what becomes of the folder does not reach them."""
    return replace(file, tensors={key: tensor.clone() for key, tensor in file.tensors.items()})
