"""From the engine's thread to the event loop: what is heard of several documents, in order."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from lorica.serve.engine import Ended, Event


@dataclass(frozen=True, slots=True)
class Heard:
    """at: seconds of the monotonic clock, in the engine's thread."""

    document: int
    at: float
    event: Event


class Inbox:
    """Made on the event loop.  Its listeners never wait, whoever calls them; the loop is woken once for all that comes
    before it looks."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._heard: deque[Heard] = deque()
        self._news = asyncio.Event()
        self._called = False

    def listener(self, document: int) -> Callable[[Event], None]:
        def listen(event: Event) -> None:
            self._heard.append(Heard(document, time.monotonic(), event))
            if self._matters(event) and not self._called:
                self._called = True
                self._wake()

        return listen

    async def next(self) -> Heard:
        while not self._heard:
            self._news.clear()
            await self._news.wait()
        return self._heard.popleft()

    def _matters(self, event: Event) -> bool:
        return True

    def _wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._look)
        except RuntimeError:
            return  # the loop has ended, and everybody who read from it

    def _look(self) -> None:
        self._called = False  # before anything is taken: what comes from now on calls again
        self._news.set()


class PatientInbox(Inbox):
    """For answers that are told when they are whole: the loop is woken when one ends, and not for each token."""

    def _matters(self, event: Event) -> bool:
        return isinstance(event, Ended)
