"""Queues by adapter, taken from in deficit round robin: one that is busy keeps no other waiting.

    each round grants every queue `quantum` tokens;   in turn, each sends a document that its grant covers

A queue comes with the grant of a round, so that a single request has its turn at once; one that empties and comes
again in the same round has what it had left, or clients that ask one thing after another would never end a round.
Shreedhar and Varghese 1995, "Efficient fair queueing using deficit round robin".
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from lorica.serve.engine.document import Document


@dataclass(eq=False)
class Queue:
    name: str
    granted: int
    documents: deque[Document] = field(default_factory=deque)

    @property
    def lacks(self) -> int:
        """Tokens that its first document costs beyond the grant."""
        return max(0, self.documents[0].cost - self.granted)


class FairQueues:
    def __init__(self, quantum: int) -> None:
        self.quantum = quantum
        self._turns: deque[Queue] = deque()
        self._by_name: dict[str, Queue] = {}
        self._left: dict[str, int] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Document]:
        return (document for queue in list(self._turns) for document in list(queue.documents))

    def put(self, document: Document) -> None:
        self._queue(document).documents.append(document)
        self._count += 1

    def put_back(self, document: Document) -> None:
        """In front of its queue, with what its turn had cost."""
        queue = self._queue(document)
        queue.documents.appendleft(document)
        queue.granted += document.cost
        self._count += 1

    def take(self, may: Callable[[Document], bool]) -> Document | None:
        """The next document of those that may go; None where no queue begins with one."""
        able = []
        for queue in self._turns:
            if may(queue.documents[0]):
                if not queue.lacks:
                    return self._taken(queue)
                able.append(queue)
        if not able:
            return None
        rounds = min(-(-queue.lacks // self.quantum) for queue in able)
        for queue in able:
            queue.granted += rounds * self.quantum
        self._left.clear()
        return self._taken(next(queue for queue in able if not queue.lacks))

    def remove(self, document: Document) -> None:
        queue = self._by_name[document.lease.name]
        queue.documents.remove(document)
        self._count -= 1
        if not queue.documents:
            self._close(queue)

    def _taken(self, queue: Queue) -> Document:
        """Its turn is over, and comes again after that of the others."""
        document = queue.documents.popleft()
        queue.granted -= document.cost
        self._count -= 1
        if queue.documents:
            self._turns.remove(queue)
            self._turns.append(queue)
        else:
            self._close(queue)
        return document

    def _queue(self, document: Document) -> Queue:
        name = document.lease.name
        if name not in self._by_name:
            self._by_name[name] = Queue(name, self._left.pop(name, self.quantum))
            self._turns.append(self._by_name[name])
        return self._by_name[name]

    def _close(self, queue: Queue) -> None:
        """A grant is not saved up by a queue that has nothing to send, nor is it given twice in a round."""
        self._left[queue.name] = min(queue.granted, self.quantum)
        del self._by_name[queue.name]
        self._turns.remove(queue)
