"""Tokens to text as they come, up to a stop string; what may belong to one is held back until that is known.

    tokens      ... "The" " answer" " is" "\\n" "\\n#"           stop "\\n\\n"
    told        "The answer is"                               the line's end waits, and is never told

A character whose bytes are spread over tokens is told when it is whole.  A token is told of (its log-probability)
together with the last of its text, and not at all where a stop string cuts it.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from lorica.serve.engine import Wrote

UNFINISHED = "\ufffd"
WINDOW = 6
"""Tokens that are decoded again with a new one: what a token says may depend on the one before, and on no others."""
Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Piece:
    """Text that may be told now, and the tokens whose text is told with it."""

    text: str = ""
    tokens: tuple[Wrote, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.text or self.tokens)


@dataclass(eq=False)
class Unfolding:
    """One answer.  stops: strings that end it;  ends: tokens that do, which have no text of their own."""

    decode: Decode
    stops: tuple[str, ...] = ()
    ends: Collection[int] = frozenset()
    stopped: bool = False
    text: str = ""
    _told: int = 0
    _window: list[int] = field(default_factory=list)
    _known: int = 0
    """Characters of the window's text that `text` holds."""
    _unplaced: list[Wrote] = field(default_factory=list)
    _waiting: list[tuple[int, Wrote]] = field(default_factory=list)
    """Tokens whose text ends at this character of `text`, which is not told yet."""

    def add(self, wrote: Wrote) -> Piece:
        if self.stopped or wrote.token in self.ends:
            return Piece()
        self._window.append(wrote.token)
        self._unplaced.append(wrote)
        said = self.decode(self._window)
        if said.endswith(UNFINISHED):
            return Piece()
        return self._grown(said)

    def end(self) -> Piece:
        """What was held back."""
        if self.stopped:
            return Piece()
        piece = self._grown(self.decode(self._window))
        rest = Piece() if self.stopped else self._piece(len(self.text))
        return Piece(piece.text + rest.text, piece.tokens + rest.tokens)

    def _grown(self, said: str) -> Piece:
        before, self.text = len(self.text), self.text + said[self._known :]
        self._known = len(said)
        self._waiting += [(len(self.text), wrote) for wrote in self._unplaced]
        self._unplaced = []
        self._slide()
        cut = self._cut(before)
        if cut is not None:
            self.stopped, self.text = True, self.text[:cut]
            return self._piece(cut)
        return self._piece(len(self.text) - self._held())

    def _slide(self) -> None:
        if len(self._window) > 2 * WINDOW:
            self._window = self._window[-WINDOW:]
            self._known = len(self.decode(self._window))

    def _cut(self, before: int) -> int | None:
        """Where the earliest stop string begins that the text now holds."""
        found = [self.text.find(stop, max(0, before - len(stop) + 1)) for stop in self.stops]
        return min((place for place in found if place >= 0), default=None)

    def _held(self) -> int:
        """Characters at the end that a stop string may begin with."""
        longest = max(map(len, self.stops), default=1) - 1
        for count in range(min(longest, len(self.text)), 0, -1):
            if any(stop.startswith(self.text[-count:]) for stop in self.stops):
                return count
        return 0

    def _piece(self, upto: int) -> Piece:
        text, self._told = self.text[self._told : upto], max(self._told, upto)
        told = tuple(wrote for place, wrote in self._waiting if place <= self._told)
        self._waiting = [each for each in self._waiting if each[0] > self._told]
        return Piece(text, told)


class Folded(Unfolding):
    """For an answer that is told when it is whole and that no string ends: decoded once, not for each token."""

    def add(self, wrote: Wrote) -> Piece:
        if wrote.token not in self.ends:
            self._unplaced.append(wrote)
        return Piece()

    def end(self) -> Piece:
        self.text = self.decode([wrote.token for wrote in self._unplaced])
        return Piece(self.text, tuple(self._unplaced))
