"""As many blocks are computed again in the backward pass as memory demands, and no more: each costs its forward."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace

from lorica.adapter import Plan
from lorica.budget.machine import Machine
from lorica.budget.memory import Moments, Workload, memory_of


def fewest_recomputed(
    plan: Plan, work: Workload, machine: Machine, counts: Sequence[int | None], *, decoder: bool, moments: Moments
) -> int | None:
    """The first of `counts` under which a run fits, the last where it fits under none; numbers of blocks ascending from
    0, None for all.  Also the first where the machine does not tell its memory."""

    def fits(count: int | None) -> bool:
        memory = memory_of(plan, replace(work, recomputed=count), machine.kind, decoder, moments)
        return bool(machine.holds(memory.peak))

    if not machine.available or len(counts) == 1 or fits(counts[0]):
        return counts[0]
    # One recomputed block saves nothing, because it is held while it is computed again; from there on each saves.
    later = counts[1:]
    return later[min(bisect_left(later, True, key=fits), len(later) - 1)]
