"""Queues by adapter, taken from in deficit round robin: one that is busy keeps no other waiting.

    each round grants every queue `quantum` tokens;   a queue whose grant covers its first document may send it

Shreedhar and Varghese 1995, "Efficient fair queueing using deficit round robin".
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from lorica.serve.engine.document import Document


@dataclass(eq=False)
class Queue:
    name: str
    documents: deque[Document] = field(default_factory=deque)
    granted: int = 0


class FairQueues:
    def __init__(self, quantum: int) -> None:
        self.quantum = quantum
        self._turns: deque[Queue] = deque()
        self._by_name: dict[str, Queue] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Document]:
        return (document for queue in list(self._turns) for document in list(queue.documents))

    def lengths(self) -> dict[str, int]:
        return {name: len(queue.documents) for name, queue in list(self._by_name.items())}

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
        waiting = 0
        while waiting < len(self._turns):
            queue = self._turns[0]
            if not may(queue.documents[0]):
                waiting += 1
                self._turns.rotate(-1)
            elif queue.documents[0].cost <= queue.granted:
                return self._taken(queue)
            else:
                waiting = 0
                queue.granted += self.quantum
                self._turns.rotate(-1)
        return None

    def remove(self, document: Document) -> None:
        queue = self._by_name[document.lease.name]
        queue.documents.remove(document)
        self._count -= 1
        self._close_if_empty(queue)

    def _taken(self, queue: Queue) -> Document:
        document = queue.documents.popleft()
        queue.granted -= document.cost
        self._count -= 1
        self._close_if_empty(queue)
        return document

    def _queue(self, document: Document) -> Queue:
        name = document.lease.name
        if name not in self._by_name:
            self._by_name[name] = Queue(name)
            self._turns.append(self._by_name[name])
        return self._by_name[name]

    def _close_if_empty(self, queue: Queue) -> None:
        """A grant is not saved up by a queue that has nothing to send."""
        if not queue.documents:
            del self._by_name[queue.name]
            self._turns.remove(queue)
