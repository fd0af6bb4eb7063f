"""Server-sent events: `data: {...}` and a blank line, at the end `data: [DONE]`.

The first of what is told is waited for before the answer begins, so that what fails by then has a status of its own;
what fails later is told as an event with an error.
"""

import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from lorica.serve.http.asking import while_there
from lorica.serve.http.errors import ApiError, api_error
from lorica.serve.http.writing import Told, Writing

Chunk = Mapping[str, Any]
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
DONE = b"data: [DONE]\n\n"


def event(chunk: Chunk) -> bytes:
    return b"data: " + json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def streamed(
    http: HttpRequest,
    writing: Writing,
    opening: Iterable[Chunk],
    chunk: Callable[[Told], Chunk],
    closing: Callable[[], Iterable[Chunk]],
) -> "Streamed":
    """opening, a chunk for each thing told, closing."""
    told = writing.told()
    try:
        first = await while_there(http, anext(told))
    except BaseException:
        writing.close()
        raise
    return Streamed(_events(first, told, opening, chunk, closing), writing)


async def _events(
    first: Told,
    told: AsyncIterator[Told],
    opening: Iterable[Chunk],
    chunk: Callable[[Told], Chunk],
    closing: Callable[[], Iterable[Chunk]],
) -> AsyncIterator[bytes]:
    yield b"".join(map(event, opening)) + event(chunk(first))
    try:
        async for each in told:
            yield event(chunk(each))
    except ApiError as error:
        yield event(api_error(error).body())
        return
    yield b"".join(map(event, closing())) + DONE


class Streamed(StreamingResponse):
    """The answer that is over when its writing is: whoever leaves first, what is still written is stopped."""

    def __init__(self, content: AsyncIterator[bytes], writing: Writing) -> None:
        super().__init__(content, headers=HEADERS, media_type="text/event-stream")
        self.writing = writing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.writing.close()
