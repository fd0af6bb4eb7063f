"""Mixes: what rows of a batch choose from a bank, each under a number that stands for it in a route."""

import threading
from collections.abc import Mapping

from torch import Tensor

from lorica.errors import AdapterError

BASE = -1
MOST = 1 << 14
"""Mixes that have a number at a time: whoever asks chooses the weights of a blend, and may choose others each time."""
Mix = tuple[tuple[str, float], ...]
"""Names and weights; one name with weight 1 for a plain choice, nothing for the base."""
Choice = str | None | Mapping[str, float]


def mix_of(choice: Choice) -> Mix:
    if choice is None:
        return ()
    return ((choice, 1.0),) if isinstance(choice, str) else tuple(choice.items())


class Mixes:
    """Numbers are given in turn and never again, so that an old route cannot come to mean another mix."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers: dict[Mix, int] = {(): BASE}
        self._mixes: dict[int, Mix] = {BASE: ()}
        self._next = 0
        self._last: tuple[Tensor | None, tuple[int, ...]] = (None, ())

    def number(self, mix: Mix) -> int:
        with self._lock:
            number = self._numbers.pop(mix, None)
            if number is None:
                number, self._next = self._next, self._next + 1
                self._mixes[number] = mix
            self._numbers[mix] = number  # the last to be forgotten
            self._forget_oldest()
            return number

    def of(self, number: int) -> Mix:
        """The mix of a number.  AdapterError where one of its adapters was removed, or MOST others came after it."""
        try:
            return self._mixes[number]
        except KeyError:
            raise AdapterError("bank: an adapter of this route was removed; enter the model anew") from None

    def rows(self, route: Tensor | None) -> tuple[int, ...]:
        """The numbers of a route; the same tuple while the route is the same tensor."""
        last, rows = self._last
        if route is not last:
            rows = () if route is None else tuple(route.tolist())
            self._last = (route, rows)
        return rows

    def _forget_oldest(self) -> None:
        while len(self._numbers) > MOST:
            oldest = next(mix for mix in self._numbers if mix)
            del self._mixes[self._numbers.pop(oldest)]

    def forget(self, name: str) -> None:
        """Every mix of this adapter."""
        with self._lock:
            gone = [mix for mix in self._numbers if any(held == name for held, _ in mix)]
            for mix in gone:
                del self._mixes[self._numbers.pop(mix)]
