"""Where the state of an optimiser is: all of it on the device, or `budget` bytes of it and the rest elsewhere.

A page is the state of one parameter.  A step visits them in the same order every time, so that the page which was used
last is needed again latest, and is the one to go (Belady 1966, IBM Systems Journal 5-2); pages before it stay.  The
arithmetic is that of the unpaged optimiser, on fewer parameters at a time: no bit of a trajectory changes.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Protocol

from torch import Tensor

from lorica.kernels.elsewhere import Kept, Store, soon

TOGETHER = 4
"""A call of a kernel takes pages of up to this part of the budget."""
Parts = dict[str, Tensor]


class State(Protocol):
    """Tensors by the name of a parameter and of their part."""

    def add(self, name: str, parts: Parts) -> None: ...

    def __getitem__(self, name: str) -> Parts:
        """Those of a parameter, on its device."""
        ...

    def together(self, names: Sequence[str]) -> Iterator[list[str]]:
        """The names, as many at a time as have room; what `[]` gives holds until the next."""
        ...

    def tensors(self, names: Sequence[str]) -> Mapping[str, Tensor]:
        """By `<parameter>.<part>`: the state's own, or copies of those that are elsewhere."""
        ...


class Held:
    """All on the device."""

    def __init__(self) -> None:
        self._parts: dict[str, Parts] = {}

    def add(self, name: str, parts: Parts) -> None:
        self._parts[name] = parts

    def __getitem__(self, name: str) -> Parts:
        return self._parts[name]

    def together(self, names: Sequence[str]) -> Iterator[list[str]]:
        yield list(names)

    def tensors(self, names: Sequence[str]) -> Mapping[str, Tensor]:
        return {f"{name}.{part}": tensor for name in names for part, tensor in self[name].items()}


class Paged:
    """At most `budget` bytes on the device, or the largest page where that is more."""

    def __init__(self, budget: int, store: Store) -> None:
        self.budget, self.pages_in, self.pages_out = budget, 0, 0
        self._store = store
        self._here: dict[str, Parts] = {}
        """In the order in which they were used."""
        self._away: dict[str, dict[str, Kept]] = {}
        """Of every page that ever left."""
        self._sizes: dict[str, int] = {}
        self._used: frozenset[str] = frozenset()

    @property
    def held(self) -> int:
        """Bytes on the device."""
        return sum(self._sizes[name] for name in self._here)

    def add(self, name: str, parts: Parts) -> None:
        self._sizes[name] = sum(tensor.nbytes for tensor in parts.values())
        self._make_room(self._sizes[name])
        self._here[name] = parts

    def __getitem__(self, name: str) -> Parts:
        parts = self._here.pop(name, None)
        if parts is None:
            self._make_room(self._sizes[name])
            parts = {part: kept.tensor(self._store.device) for part, kept in self._away[name].items()}
            self.pages_in += 1
        self._here[name] = parts
        return parts

    def together(self, names: Sequence[str]) -> Iterator[list[str]]:
        groups = [*self._groups(names), []]
        for group, following in pairwise(groups):
            for name in following:
                if name not in self._here:
                    soon(self._away[name].values())
            self._used = frozenset(group)
            yield group
        self._used = frozenset()

    def tensors(self, names: Sequence[str]) -> Mapping[str, Tensor]:
        return _Tensors(self._here, self._away, names)

    def _groups(self, names: Sequence[str]) -> Iterator[list[str]]:
        group: list[str] = []
        for name in names:
            if group and sum(self._sizes[each] for each in (*group, name)) > self.budget // TOGETHER:
                yield group
                group = []
            group.append(name)
        yield group

    def _make_room(self, size: int) -> None:
        for name in [name for name in reversed(self._here) if name not in self._used]:
            if self.held + size <= self.budget:
                return
            self._leave(name)

    def _leave(self, name: str) -> None:
        parts = self._here.pop(name)
        if name not in self._away:
            self._away[name] = {part: self._store.room(tuple(t.shape), t.dtype) for part, t in parts.items()}
        for part, tensor in parts.items():
            self._away[name][part].take(tensor)
        self.pages_out += 1


class _Tensors(Mapping[str, Tensor]):
    """Of pages wherever they are; one that is elsewhere is read each time it is asked for."""

    def __init__(self, here: Mapping[str, Parts], away: Mapping[str, Mapping[str, Kept]], names: Sequence[str]) -> None:
        self._here, self._away = here, away
        parts = {name: here[name] if name in here else away[name] for name in names}
        self._keys = {f"{name}.{part}": (name, part) for name in names for part in parts[name]}

    def __getitem__(self, key: str) -> Tensor:
        name, part = self._keys[key]
        return self._here[name][part] if name in self._here else self._away[name][part].tensor()

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


class OnCpu(Mapping[str, Tensor]):
    """Tensors on the CPU, one at a time as they are asked for."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, key: str) -> Tensor:
        return self._tensors[key].cpu()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
