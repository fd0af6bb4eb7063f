"""What answers outside the engine, an encoder and classifiers: one request after another, in a thread of their own."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from lorica.adapter.mixes import Choice
from lorica.serve.http.errors import AGAIN, ApiError

PENDING = 64
T = TypeVar("T")
Fields = str | Mapping[str, str]


class Encodes(Protocol):
    """`lorica.serve.encoder.Encoder`"""

    def __call__(self, texts: Sequence[str], choice: Choice) -> tuple[Any, int]:
        """Vectors (N, d) float32, and the tokens that were read."""
        ...


@dataclass(frozen=True)
class Classified:
    """probs: one a label, in their order; of a regression its number.  tokens: that were read."""

    label: str
    probs: tuple[float, ...]
    tokens: int


class Classifies(Protocol):
    """`lorica.serve.classifier.Classifier`"""

    @property
    def labels(self) -> Sequence[str]: ...

    def __call__(self, fields: Fields) -> Classified:
        """RequestError for fields that the adapter's rows do not have."""
        ...


@dataclass(eq=False)
class Outside:
    """encoder: None for a base that writes;  classifiers: by name."""

    encoder: Encodes | None = None
    classifiers: Mapping[str, Classifies] = field(default_factory=dict)
    pending: int = 0
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "lorica-outside"))

    async def encoded(self, encoder: Encodes, texts: Sequence[str], choice: Choice) -> tuple[Any, int]:
        return await self._in_turn(lambda: encoder(texts, choice))

    async def classified(self, name: str, rows: Sequence[Fields]) -> list[Classified]:
        ask = self.classifiers[name]
        return await self._in_turn(lambda: [ask(row) for row in rows])

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _in_turn(self, work: Callable[[], T]) -> T:
        """ApiError 429 where too many wait."""
        if self.pending >= PENDING:
            raise ApiError(429, "the queue is full; ask again in a moment", headers=AGAIN)
        self.pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        finally:
            self.pending -= 1
