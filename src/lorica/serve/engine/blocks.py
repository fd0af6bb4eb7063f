"""Which document holds which block of keys and values: the books, not the numbers.

    free  ->  held by documents, some by several  ->  kept for reuse, least recently held first  ->  free

A block that is full has a key (`prefix.py`) and is never written again, so documents may share it.  Where no block is
free, the one that nobody has held for longest is forgotten.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class Blocks:
    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(reversed(range(count)))
        self._holders = [0] * count
        self._keys: list[bytes | None] = [None] * count
        self._found: dict[bytes, int] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Blocks that can be taken."""
        return len(self._free) + len(self._kept)

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def kept(self) -> int:
        return len(self._kept)

    def take(self) -> int | None:
        """A block of one's own, to be written; None where documents hold them all."""
        if not self._free and not self._forget():
            return None
        block = self._free.pop()
        self._holders[block] = 1
        return block

    def reuse(self, keys: Iterable[bytes]) -> list[int]:
        """The blocks of these keys up to the first that is not here; each has one holder more."""
        found = []
        for key in keys:
            block = self._found.get(key)
            if block is None:
                break
            self._hold(block)
            found.append(block)
        return found

    def seal(self, block: int, key: bytes) -> None:
        """The block is full: from now on others may read it.  The first of several equal ones is the one found."""
        if key not in self._found:
            self._found[key] = block
            self._keys[block] = key

    def drop(self, blocks: Sequence[int]) -> None:
        """One holder less of each.  The end of a document is forgotten before its beginning, which others may share."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if not self._holders[block]:
                self._leave(block)

    def _hold(self, block: int) -> None:
        self._kept.pop(block, None)
        self._holders[block] += 1

    def _leave(self, block: int) -> None:
        if self._keys[block] is None:
            self._free.append(block)
        else:
            self._kept[block] = None

    def _forget(self) -> bool:
        """Whether a block that was kept is free now."""
        if not self._kept:
            return False
        block, _ = self._kept.popitem(last=False)
        key = self._keys[block]
        if key is not None:
            del self._found[key]
        self._keys[block] = None
        self._free.append(block)
        return True
