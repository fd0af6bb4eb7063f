"""Whether there is room, asked before the work: one line and exit status 1 where there is not."""

from lorica.budget.machine import Machine
from lorica.budget.memory import gigabytes
from lorica.errors import NoRoomError


def require_room(needed: int, machine: Machine, what: str) -> None:
    """NoRoomError where `needed` bytes are more than there are at all; nothing where the memory is not known."""
    if machine.available and needed > machine.available:
        raise NoRoomError(f"does not fit: {what} takes {gigabytes(needed)} by the forecast, of {machine}")
