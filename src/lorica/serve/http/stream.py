"""From the engine's thread to the event loop: what is heard of several documents, in order."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from lorica.serve.engine import Event


@dataclass(frozen=True, slots=True)
class Heard:
    """at: seconds of the monotonic clock, in the engine's thread."""

    document: int
    at: float
    event: Event


class Inbox:
    """Made on the event loop.  Its listeners never wait, whoever calls them."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Heard] = asyncio.Queue()

    def listener(self, document: int) -> Callable[[Event], None]:
        def listen(event: Event) -> None:
            heard = Heard(document, time.monotonic(), event)
            try:
                self._loop.call_soon_threadsafe(self._queue.put_nowait, heard)
            except RuntimeError:
                return  # the loop has ended, and everybody who read from it

        return listen

    async def next(self) -> Heard:
        return await self._queue.get()
