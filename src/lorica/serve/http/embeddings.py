"""/v1/embeddings: one vector a text, of length one, from a base that encodes.

{"data": [{"object": "embedding", "index": 0, "embedding": [...] or base64 of float32}], "usage": {...}}
"""

import base64
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lorica.serve.http.errors import ApiError
from lorica.serve.http.gate import record_of
from lorica.serve.http.reading import read
from lorica.serve.http.schemas import EmbeddingsAsked
from lorica.serve.http.served import served


async def embeddings(request: Request) -> Response:
    here = served(request)
    encoder = here.outside.encoder
    if encoder is None:
        raise ApiError(400, f"{here.names.base} writes text; embeddings are made by an encoder")
    asked = await read(request, EmbeddingsAsked, here.limits)
    if len(asked.input) > here.limits.inputs:
        raise ApiError(400, f"input: at most {here.limits.inputs} texts", param="input")
    chosen = here.names.chosen(asked.model, asked.adapters)
    record = record_of(request.scope)
    record.adapter = chosen.label
    vectors, tokens = await here.outside.encoded(encoder, asked.input, chosen.choice)
    record.prompt_tokens = tokens
    here.metrics.counted(chosen.label, prompt=tokens, reused=0, written=0)
    data = [_told(number, vector, asked.encoding_format) for number, vector in enumerate(vectors)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "data": data, "model": chosen.model, "usage": usage})


def _told(number: int, vector: Any, form: str) -> dict[str, Any]:
    packed = base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return {"object": "embedding", "index": number, "embedding": packed if form == "base64" else vector.tolist()}
