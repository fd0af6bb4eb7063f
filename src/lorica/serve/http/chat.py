"""/v1/chat/completions: the next turn of a chat.

{"choices": [{"index": 0, "message": {"role": "assistant", "content": ...}, "finish_reason": "stop", ...}], ...}
streamed: {"choices": [{"index": 0, "delta": {"content": ...}, ...}]}, the first delta with the role
"""

import time
from collections.abc import Iterable, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lorica.serve.engine import Wrote
from lorica.serve.http.asking import begun, chosen_for, while_there
from lorica.serve.http.choosing import Chosen
from lorica.serve.http.events import Chunk, streamed
from lorica.serve.http.gate import record_of
from lorica.serve.http.reading import read
from lorica.serve.http.schemas import ChatAsked
from lorica.serve.http.served import served
from lorica.serve.http.texts import Texts, words_of
from lorica.serve.http.unfolding import UNFINISHED
from lorica.serve.http.writing import Told, Writing


async def chat(request: Request) -> Response:
    here = served(request)
    _, texts = here.writes()
    asked = await read(request, ChatAsked, here.limits)
    chosen = chosen_for(request, asked)
    here.names.require_this_template(chosen)
    plain = here.names.plain(chosen) or (not chosen.names and texts.reads_as_it_is(asked.messages))
    prompt = await texts.chat(asked.messages, plain)
    writing = begun(request, asked, chosen, [prompt])
    shape = _Shape(record_of(request.scope).id, chosen, asked, texts, writing)
    if asked.stream:
        return await streamed(request, writing, shape.opening(), shape.chunk, shape.closing)
    try:
        await while_there(request, writing.whole())
    finally:
        writing.close()
    return JSONResponse(shape.whole())


class _Shape:
    def __init__(self, name: str, chosen: Chosen, asked: ChatAsked, texts: Texts, writing: Writing) -> None:
        self.asked, self.texts, self.writing = asked, texts, writing
        self.head = {
            "id": name.replace("req-", "chatcmpl-"),
            "object": "chat.completion.chunk" if asked.stream else "chat.completion",
            "created": int(time.time()),
            "model": chosen.model,
        }

    def whole(self) -> dict[str, Any]:
        choices = [
            {
                "index": number,
                "message": {"role": "assistant", "content": document.unfolding.text, "refusal": None},
                "logprobs": self._logprobs(document.tokens),
                "finish_reason": document.reason,
            }
            for number, document in enumerate(self.writing.documents)
        ]
        return {**self.head, "choices": choices, "usage": self.writing.tokens.to_dict()}

    def opening(self) -> Iterable[Chunk]:
        for number in range(len(self.writing.documents)):
            yield self._chunk(number, {"role": "assistant", "content": ""}, None, None)

    def chunk(self, told: Told) -> Chunk:
        delta = {"content": told.piece.text} if told.piece.text else {}
        return self._chunk(told.document, delta, self._logprobs(told.piece.tokens), told.reason)

    def closing(self) -> Iterable[Chunk]:
        return [{**self.head, "choices": [], "usage": self.writing.tokens.to_dict()}] if self.asked.wants_usage else []

    def _chunk(self, number: int, delta: Any, logprobs: Any, reason: str | None) -> Chunk:
        choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return {**self.head, "choices": [choice], **({"usage": None} if self.asked.wants_usage else {})}

    def _logprobs(self, tokens: Sequence[Wrote]) -> dict[str, Any] | None:
        if not self.asked.logprobs:
            return None
        return {"content": [self._told(wrote) for wrote in tokens], "refusal": None}

    def _told(self, wrote: Wrote) -> dict[str, Any]:
        word, logprob, likeliest = words_of(self.texts, wrote)
        return {**_word(word, logprob), "top_logprobs": [_word(*each) for each in likeliest]}


def _word(word: str, logprob: float) -> dict[str, Any]:
    """bytes: null where the token is a part of a character."""
    return {"token": word, "logprob": logprob, "bytes": None if UNFINISHED in word else list(word.encode())}
