"""As many blocks are computed again, or fetched, as memory demands, and no more: each costs its forward, or its way."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace

from lorica.adapter import Plan
from lorica.budget.elsewhere import on_device
from lorica.budget.machine import Machine
from lorica.budget.memory import Moments, Workload


def fewest_recomputed(
    plan: Plan, work: Workload, machine: Machine, counts: Sequence[int | None], *, decoder: bool, moments: Moments
) -> int | None:
    """The first of `counts` under which a run fits, the last where it fits under none; numbers of blocks ascending from
    0, None for all.  Also the first where the machine does not tell its memory."""

    def fits(count: int | None) -> bool:
        return _fits(plan, replace(work, recomputed=count), machine, decoder, moments)

    if not machine.available or len(counts) == 1 or fits(counts[0]):
        return counts[0]
    # One recomputed block saves nothing, because it is held while it is computed again; from there on each saves.
    later = counts[1:]
    return later[min(bisect_left(later, True, key=fits), len(later) - 1)]


def fewest_fetched(
    plan: Plan, work: Workload, machine: Machine, layers: int, *, decoder: bool, moments: Moments
) -> int:
    """The fewest of `layers` blocks to fetch under which a run fits; all of them where it fits under none, none where
    the machine does not tell its memory."""

    def fits(count: int) -> bool:
        return _fits(plan, replace(work, host_layers=count), machine, decoder, moments)

    if not machine.available or fits(0):
        return 0
    # One fetched block saves all but the room for its largest weight: from there on each saves.
    return min(bisect_left(range(1, layers + 1), True, key=fits) + 1, layers)


def _fits(plan: Plan, work: Workload, machine: Machine, decoder: bool, moments: Moments) -> bool:
    return bool(machine.holds(on_device(plan, work, machine.kind, decoder, moments).peak))
