"""What the campaign has found so far: kept after every chunk, so that a campaign that is stopped goes on where it was.

A count stands with its upper bound: 0 failures in n independent cases leave, with 95 % confidence, a rate below 3/n.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SOURCES = ("src/lorica", "campaign")
SHOWN = 5


@dataclass
class Tally:
    """`cases` that were tried, what else was counted, and each failure in words; `refused` says why none were tried."""

    cases: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    refused: str | None = None

    def count(self, name: str, number: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + number

    @classmethod
    def of(cls, found: Iterable["Tally"], *, until_one_fails: bool = False) -> "Tally":
        """The sum of what work finds, piece by piece; or no more than it takes to find a failure."""
        whole = cls()
        for piece in found:
            whole.add(piece)
            if until_one_fails and whole.failures:
                break
        return whole

    def add(self, other: "Tally") -> None:
        self.cases += other.cases
        self.failures += other.failures
        self.refused = self.refused or other.refused
        for name, number in other.counts.items():
            self.count(name, number)


Work = Callable[[Path, int, int], Iterator[Tally]]
"""(an empty folder, number of the chunk, how much of it: `size`, smaller in a sample) -> what is found, as it is."""
Breakage = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, kw_only=True)
class Part:
    """name    what is done; claim: what must hold each time
    chunks  how many pieces of work; size: of each, for the whole campaign and for a sample
    controls    code broken in one known way, with the chunk on which that must be found: one failure is enough
    """

    name: str
    claim: str
    work: Work
    chunks: int
    size: int
    sample: Mapping[int, int]
    controls: Mapping[str, tuple[Breakage, int, int]]


class Ledger:
    """The results of a campaign in a file, which is written anew after each chunk."""

    def __init__(self, path: Path, stamp: str) -> None:
        self.path = path
        self.entries: dict[str, Any] = {"stamp": stamp}
        if path.exists() and (found := json.loads(path.read_text())).get("stamp") == stamp:
            self.entries = found

    def get(self, key: str) -> Tally | None:
        found = self.entries.get(key)
        return None if found is None else Tally(**{name: found[name] for name in vars(Tally())})

    def seconds(self, key: str) -> float:
        return self.entries[key]["seconds"]

    def put(self, key: str, tally: Tally, seconds: float) -> None:
        self.entries[key] = {**vars(tally), "seconds": seconds}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(".new")
        draft.write_text(json.dumps(self.entries))
        draft.replace(self.path)


def source_stamp() -> str:
    """Changes with any source that the campaign tries or is made of: older results are then of no use."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in SOURCES for path in (ROOT / folder).rglob("*.py")):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


class Estimate:
    """Time left, from the share of the work that is done."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.worked, self.began = total, 0, 0, time.monotonic()

    def passed(self, worked: bool) -> str:
        self.done += 1
        self.worked += worked
        left = (time.monotonic() - self.began) / max(self.worked, 1) * (self.total - self.done)
        return f"{self.done}/{self.total}, about {int(left // 60)}:{int(left % 60):02d} left"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def bound(cases: int, failures: int) -> str:
    if cases == 0:
        return "nothing was tried"
    return f"below {3 / cases:.2g} (95 %)" if failures == 0 else f"{failures / cases:.2g} observed"


def summary(part: Part, tallies: Iterable[Tally]) -> dict[str, Any]:
    whole = Tally.of(tallies)
    return {
        "claim": part.claim,
        "cases": whole.cases,
        **whole.counts,
        "failures": len(whole.failures),
        "failure_rate": bound(whole.cases, len(whole.failures)),
        **({"first_failures": whole.failures[:SHOWN]} if whole.failures else {}),
        **({"not_tried": whole.refused} if whole.refused else {}),
    }
