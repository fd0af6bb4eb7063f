"""What an engine is doing and has done, as numbers of one moment."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class OfAdapter:
    """Of one adapter, or of the base under the name "".  A blend counts under its names joined by "+"."""

    running: int = 0
    waiting: int = 0
    requests: int = 0
    read: int = 0
    written: int = 0


@dataclass(frozen=True, kw_only=True)
class Stats:
    """running, waiting   requests
    read, written      tokens computed of prompts, and of answers
    reused             tokens of prompts that had been computed before
    blocks             of keys and values: used by requests, kept for reuse, free
    resident           adapters that answer at once, and their bytes
    ended              requests by the reason they ended for
    preempted          requests that gave their blocks to older ones for a while
    """

    running: int
    waiting: int
    steps: int
    read: int
    written: int
    reused: int
    blocks_used: int
    blocks_kept: int
    blocks_free: int
    resident: int
    resident_bytes: int
    preempted: int
    ended: Mapping[str, int] = field(default_factory=dict)
    by_adapter: Mapping[str, OfAdapter] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class Count:
    """The tally of one adapter; the engine's thread alone writes it."""

    requests: int = 0
    read: int = 0
    written: int = 0


@dataclass(eq=False)
class Counts:
    """What has happened so far; the engine's thread alone writes it."""

    steps: int = 0
    reused: int = 0
    preempted: int = 0
    ended: dict[str, int] = field(default_factory=dict)
    by_adapter: dict[str, Count] = field(default_factory=dict)

    def of(self, name: str) -> Count:
        found = self.by_adapter.get(name)
        if found is None:
            found = self.by_adapter[name] = Count()
        return found

    def note_end(self, reason: str) -> None:
        self.ended[reason] = self.ended.get(reason, 0) + 1
