"""Writing: the documents of one HTTP request, from their submission to the last of their text.

one prompt, n choices -> n documents; several prompts -> theirs one after another
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lorica.serve.engine import Ended, Engine, Request, Ticket, Wrote
from lorica.serve.http.errors import AGAIN, ApiError
from lorica.serve.http.metrics import Metrics
from lorica.serve.http.records import Record
from lorica.serve.http.stream import Heard, Inbox
from lorica.serve.http.unfolding import Piece, Unfolding

Reason = Literal["stop", "length"]
GRACE = 10.0
"""Seconds beyond its deadline after which an engine that says nothing is taken for dead."""


@dataclass(frozen=True)
class Told:
    """Something new of one document: a piece, and at its end the reason."""

    document: int
    piece: Piece
    reason: Reason | None = None


@dataclass(eq=False)
class Document:
    """One answer while it is written; `at` is when its last token was."""

    request: Request
    unfolding: Unfolding
    ticket: Ticket
    written: int = 0
    at: float | None = None
    reason: Reason | None = None
    tokens: list[Wrote] = field(default_factory=list)


@dataclass(frozen=True)
class Tokens:
    """Of a whole request; a prompt with several choices counts once."""

    prompt: int
    written: int
    reused: int

    def to_dict(self) -> dict[str, object]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.written,
            "total_tokens": self.prompt + self.written,
            "prompt_tokens_details": {"cached_tokens": self.reused},
        }


class Writing:
    """Begun on the event loop; `close` it whatever happens."""

    def __init__(self, inbox: Inbox, record: Record, metrics: Metrics, choices: int, seconds: float) -> None:
        self.documents: list[Document] = []
        self._inbox, self._record, self._metrics, self._choices = inbox, record, metrics, choices
        self._watch = metrics.watch(record.adapter)
        self._late = asyncio.get_running_loop().call_later(seconds + GRACE, self._expire)
        self._closed = False

    @classmethod
    def begun(
        cls,
        engine: Engine,
        requests: Sequence[Request],
        unfold: Callable[[], Unfolding],
        inbox: Inbox,
        *,
        record: Record,
        metrics: Metrics,
        choices: int,
        seconds: float,
    ) -> "Writing":
        """Every document or none: errors of `Engine.submit` take the ones before it back."""
        writing = cls(inbox, record, metrics, choices, seconds)
        try:
            for number, request in enumerate(requests):
                ticket = engine.submit(request, writing._inbox.listener(number))
                writing.documents.append(Document(request, unfold(), ticket))
        except BaseException:
            writing.close()
            raise
        return writing

    async def told(self) -> AsyncIterator[Told]:
        """What the documents say, until each has ended.  ApiError 500, 503 or 504 where one fails."""
        while any(document.reason is None for document in self.documents):
            told = self._told(await self._inbox.next())
            if told is not None:
                yield told

    async def whole(self) -> None:
        """Until every document has ended; each then holds its text and its tokens."""
        async for told in self.told():
            self.documents[told.document].tokens += told.piece.tokens

    def close(self) -> None:
        """What is still written is stopped, and what was is counted; once."""
        if self._closed:
            return
        self._closed = True
        self._late.cancel()
        for document in self.documents:
            if document.reason is None:
                document.ticket.cancel()
        tokens, record = self.tokens, self._record
        record.prompt_tokens, record.written_tokens = tokens.prompt, tokens.written
        self._metrics.counted(record.adapter, prompt=tokens.prompt, reused=tokens.reused, written=tokens.written)

    @property
    def tokens(self) -> Tokens:
        prompts = self.documents[:: self._choices]
        return Tokens(
            sum(len(document.request.tokens) for document in prompts),
            sum(document.written for document in self.documents),
            sum(document.ticket.usage.reused for document in prompts),
        )

    def _expire(self) -> None:
        for number in range(len(self.documents)):
            self._inbox.listener(number)(Ended("deadline", "the engine does not answer"))

    def _told(self, heard: Heard) -> Told | None:
        document = self.documents[heard.document]
        if document.reason is not None:
            return None  # it was stopped, and the engine was still writing
        if isinstance(heard.event, Wrote):
            return self._wrote(document, heard, heard.event)
        return self._ended(document, heard.document, heard.event)

    def _wrote(self, document: Document, heard: Heard, wrote: Wrote) -> Told | None:
        self._timed(document, heard.at)
        document.written += 1
        piece = document.unfolding.add(wrote)
        if document.unfolding.stopped:
            document.reason = "stop"
            document.ticket.cancel()
        return Told(heard.document, piece, document.reason) if piece or document.reason else None

    def _timed(self, document: Document, at: float) -> None:
        if document.at is not None:
            self._watch.between.observe(at - document.at)
        elif self._record.first_token is None:
            self._record.first_token = at - self._record.started
            self._watch.first.observe(self._record.first_token)
        document.at = at

    def _ended(self, document: Document, number: int, ended: Ended) -> Told:
        if ended.reason not in ("stop", "length"):
            self._record.problem = ended.message
            raise _failure(ended)
        piece = document.unfolding.end()
        document.reason = "stop" if document.unfolding.stopped or ended.reason == "stop" else "length"
        return Told(number, piece, document.reason)


def _failure(ended: Ended) -> ApiError:
    match ended.reason:
        case "deadline":
            return ApiError(504, "the time of this request was over before the answer was whole")
        case "cancelled":
            return ApiError(503, "the server is stopping", headers=AGAIN)
        case _:
            return ApiError(500, "the engine could not answer; the log of the server says why")
