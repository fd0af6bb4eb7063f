"""Every system call on a run's folder fails, one after the other, with ENOSPC, EIO or EROFS: once, or from then on.

`lorica train --resume` then says so in one line and exits with 1, or ends as if nothing had happened; what was on the
disk is still good; and the next `lorica train --resume` ends as if nothing had happened.
"""

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from campaign import system_calls, trees
from campaign.command_run import Workplace, told_well
from campaign.ledger import Tally
from campaign.system_calls import Call


@dataclass(frozen=True)
class Fault:
    """An error, of calls that change the disk (or of those that read), once or from the N-th call on."""

    code: int
    changing: bool = True
    lasting: bool = False

    def __str__(self) -> str:
        kind = "" if self.changing else " when reading"
        return f"{errno.errorcode[self.code]}{kind}{' from then on' if self.lasting else ''}"


FAULTS = (
    Fault(errno.ENOSPC),
    Fault(errno.EIO),
    Fault(errno.EROFS),
    Fault(errno.ENOSPC, lasting=True),
    Fault(errno.EIO, changing=False),
)
SLICES = 4
"""The N-th calls of a fault are dealt to this many chunks."""


class Striking:
    """Chooses the N-th call of a kind, and with `lasting` those after it."""

    def __init__(self, fault: Fault, nth: int) -> None:
        self.fault, self.nth, self.met = fault, nth, 0

    def __call__(self, call: Call) -> bool:
        if call.changes != self.fault.changing:
            return False
        self.met += 1
        return self.met == self.nth or (self.fault.lasting and self.met > self.nth)


def at_every_call(place: Path, chunk: int, size: int) -> Iterator[Tally]:
    """Chunk: which fault, and which slice of the N; `size`: how many N at most (evenly spread), 0 for all."""
    if why := system_calls.unavailable():
        yield Tally(refused=why)
        return
    fault, nth = FAULTS[chunk // SLICES], chunk % SLICES + 1
    stride = max(SLICES, _calls(fault.changing) // size) if size else SLICES
    while (tally := _strike(place / f"{nth}", fault, nth)) is not None:
        nth += stride
        yield tally


@cache
def _calls(changing: bool) -> int:
    """How many calls a run makes that change the disk, or that read."""
    strikes = Striking(Fault(errno.EIO, changing), 1 << 30)
    case = workplace().begin(workplace().place / f"counted {changing}")
    system_calls.failing(strikes, errno.EIO, case / "run", workplace().train(case), case / "said")
    trees.erase(case)
    return strikes.met


def _strike(case: Path, fault: Fault, nth: int) -> Tally | None:
    """None when a run has fewer calls than that."""
    at = workplace()
    at.begin(case)
    traced = system_calls.failing(Striking(fault, nth), fault.code, case / "run", at.train(case), case / "said")
    if traced.struck is None:
        trees.erase(case)
        return None
    tally = Tally(cases=1)
    name = f"{fault}, {traced.struck.name} number {nth} ({Path(traced.struck.path).name})"
    tally.failures += [f"{name}: {wrong}" for wrong in _wrong(case, traced, fault, tally)]
    trees.erase(case)
    return tally


def _wrong(case: Path, traced: system_calls.Traced, fault: Fault, tally: Tally) -> list[str]:
    at = workplace()
    if traced.end.status == 0:
        tally.count("survived")
        return [f"exit status 0, but {wrong}" for wrong in at.difference(case)]
    tally.count("told")
    wrong = told_well(traced.end, case, errno.errorcode[fault.code]) + at.harm(case)
    end = at.trained(case)
    if end.status:
        return [*wrong, f"the next run failed: {end.said[-200:]}"]
    return wrong + [f"the next run ended otherwise: {part}" for part in at.difference(case)]


class _Made:
    workplace: Workplace | None = None


def prepare(place: Path) -> None:
    """Makes the base, the data and the runs that all others begin with or are compared with."""
    _Made.workplace = Workplace.made(place)
    _ = _Made.workplace.adapters


def workplace() -> Workplace:
    if _Made.workplace is None:
        raise RuntimeError("prepare() makes the workplace first")
    return _Made.workplace
