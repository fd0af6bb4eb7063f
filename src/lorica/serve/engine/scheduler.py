"""Scheduler: who runs, who waits, and who holds which block.

waiting by adapter  ->  running, in order of admission  ->  ended
                    <-  the youngest, where blocks run out; what it had is computed again, to the same bits
"""

from collections.abc import Sequence

from lorica.models.paged import BLOCK
from lorica.serve.engine.blocks import Blocks
from lorica.serve.engine.document import Document
from lorica.serve.engine.fair import FairQueues
from lorica.serve.engine.lease import Adapters
from lorica.serve.engine.limits import Limits

Piece = tuple[Document, int]
"""A document, and how many of its tokens are read next."""


class Scheduler:
    def __init__(self, blocks: Blocks, shelf: Adapters, limits: Limits) -> None:
        self.blocks, self.shelf, self.limits = blocks, shelf, limits
        self.running: list[Document] = []
        self.queues = FairQueues(limits.quantum)
        self.preempted = 0
        self._next: Document | None = None
        """Its turn has come, and blocks have not: nobody overtakes it."""

    @property
    def waiting(self) -> int:
        return len(self.queues) + (self._next is not None)

    def documents(self) -> list[Document]:
        return [*self.running, *self.waiting_documents()]

    def waiting_documents(self) -> list[Document]:
        return [*self.queues, *([self._next] if self._next is not None else [])]

    def anew(self) -> "Scheduler":
        """One of the same kind that knows of nothing."""
        return Scheduler(type(self.blocks)(self.blocks.count), self.shelf, self.limits)

    def put(self, document: Document) -> None:
        self.queues.put(document)

    def admit(self) -> list[Document]:
        """Those that begin to run."""
        begun = []
        while len(self.running) < self.limits.running:
            document, self._next = self._next or self.queues.take(self._may_run), None
            if document is None or not self._begin(document):
                break
            begun.append(document)
        return begun

    def decoding(self) -> list[Document]:
        """All that have one token unread, with room for it in blocks of their own."""
        ready = [document for document in self.running if document.read + 1 == len(document.tokens)]
        return [document for document in ready if self._has_room(document)] if self._is_short(ready) else ready

    def pieces(self, budget: int) -> list[Piece]:
        """The next tokens of prompts, `budget` in all, as equal a share for each as its length allows: a long one does
        not keep short ones from their first token."""
        reading = sorted((each for each in self.running if each.unread > 1), key=lambda each: each.unread)
        found: list[Piece] = []
        for place, document in enumerate(reading):
            count = min(document.unread, -(-budget // (len(reading) - place)))
            budget -= count
            if count:
                found.append((document, count))
        return found

    def advance(self, document: Document, count: int) -> None:
        """So many tokens more have been read.  A block that is full by that may be shared."""
        full = document.read // BLOCK
        document.read += count
        if document.read // BLOCK > full:
            keys = document.keys_up_to(document.read // BLOCK)
            for index in range(full, len(keys)):
                self.blocks.seal(document.table[index], keys[index])

    def leave(self, document: Document) -> None:
        """A document that has ended holds nothing any more."""
        if document in self.running:
            self._stop(document)
        elif document is self._next:
            self._next = None
        else:
            self.queues.remove(document)

    def _may_run(self, document: Document) -> bool:
        return self.shelf.ready(document.lease)

    def _begin(self, document: Document) -> bool:
        """Whether it runs now; else it is the next."""
        number = self.shelf.pin(document.lease)
        if number is None:
            self.queues.put_back(document)
            return False
        if not self._give_blocks(document):
            self.shelf.unpin(document.lease)
            self._next = document
            return False
        document.number = number
        self.running.append(document)
        return True

    def _give_blocks(self, document: Document) -> bool:
        """Blocks for all its tokens, those of its beginning that are known among them.  One token is always read, since
        the next is chosen by what comes out for it.  Each that runs already keeps a block to grow into."""
        count = len(document.tokens)
        document.table = self.blocks.reuse(document.keys_up_to((count - 1) // BLOCK))
        needed = -(-count // BLOCK) - len(document.table)
        if self.blocks.available < needed + len(self.running):
            self.blocks.drop(document.table)
            document.table = []
            return False
        document.read = len(document.table) * BLOCK
        if document.reused is None:
            document.reused = document.read
        document.table += self._taken(needed)
        return True

    def _taken(self, count: int) -> list[int]:
        return [block for _ in range(count) if (block := self.blocks.take()) is not None]

    @staticmethod
    def _is_short(documents: Sequence[Document]) -> bool:
        return any(document.read == BLOCK * len(document.table) for document in documents)

    def _has_room(self, document: Document) -> bool:
        """Where there is no block, younger documents give theirs; the youngest of all waits."""
        if not document.table:
            return False
        if document.read < BLOCK * len(document.table):
            return True
        while (block := self.blocks.take()) is None:
            youngest = self.running[-1]
            self._preempt(youngest)
            if youngest is document:
                return False
        document.table.append(block)
        return True

    def _preempt(self, document: Document) -> None:
        self._stop(document)
        self.preempted += 1
        self.queues.put_back(document)

    def _stop(self, document: Document) -> None:
        self.running.remove(document)
        self.shelf.unpin(document.lease)
        self.blocks.drop(document.table)
        document.table, document.read = [], 0
