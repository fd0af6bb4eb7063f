"""/v1/completions: text that is written on from a prompt.

{"choices": [{"index": 0, "text": ..., "logprobs": ..., "finish_reason": "stop" | "length"}], "usage": {...}}
"""

import time
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lorica.serve.engine import Wrote
from lorica.serve.http.asking import begun, chosen_for, while_there
from lorica.serve.http.choosing import Chosen
from lorica.serve.http.events import Chunk, streamed
from lorica.serve.http.gate import record_of
from lorica.serve.http.reading import read
from lorica.serve.http.schemas import CompletionAsked
from lorica.serve.http.served import served
from lorica.serve.http.texts import Texts, words_of
from lorica.serve.http.writing import Told, Writing


async def completions(request: Request) -> Response:
    here = served(request)
    _, texts = here.writes()
    asked = await read(request, CompletionAsked, here.limits)
    chosen = chosen_for(request, asked)
    writing = begun(request, asked, chosen, await texts.prompts(asked.prompt))
    shape = _Shape(record_of(request.scope).id, chosen, asked, texts, writing)
    if asked.stream:
        return await streamed(request, writing, (), shape.chunk, shape.closing)
    try:
        await while_there(request, writing.whole())
    finally:
        writing.close()
    return JSONResponse(shape.whole())


class _Shape:
    def __init__(self, name: str, chosen: Chosen, asked: CompletionAsked, texts: Texts, writing: Writing) -> None:
        self.asked, self.texts, self.writing = asked, texts, writing
        self.offsets = [0] * len(writing.documents)
        self.head = {
            "id": name.replace("req-", "cmpl-"),
            "object": "text_completion",
            "created": int(time.time()),
            "model": chosen.model,
        }

    def whole(self) -> dict[str, Any]:
        choices = [
            self._choice(number, document.unfolding.text, document.tokens, document.reason)
            for number, document in enumerate(self.writing.documents)
        ]
        return {**self.head, "choices": choices, "usage": self.writing.tokens.to_dict()}

    def chunk(self, told: Told) -> Chunk:
        choice = self._choice(told.document, told.piece.text, told.piece.tokens, told.reason)
        return {**self.head, "choices": [choice], **({"usage": None} if self.asked.wants_usage else {})}

    def closing(self) -> Iterable[Chunk]:
        return [{**self.head, "choices": [], "usage": self.writing.tokens.to_dict()}] if self.asked.wants_usage else []

    def _choice(self, number: int, text: str, tokens: Sequence[Wrote], reason: str | None) -> dict[str, Any]:
        logprobs = None if self.asked.logprobs is None else self._logprobs(number, tokens)
        return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, number: int, tokens: Sequence[Wrote]) -> dict[str, Any]:
        said = [words_of(self.texts, wrote) for wrote in tokens]
        places = list(accumulate((len(word) for word, _, _ in said), initial=self.offsets[number]))
        self.offsets[number] = places.pop()
        return {
            "tokens": [word for word, _, _ in said],
            "token_logprobs": [logprob for _, logprob, _ in said],
            "top_logprobs": [dict(likeliest) for _, _, likeliest in said],
            "text_offset": places,
        }
