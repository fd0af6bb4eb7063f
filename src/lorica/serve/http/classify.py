"""/v1/classify: which of its labels a classification adapter gives a text.

{"data": [{"index": 0, "label": "math", "probs": [...], "num_classes": 12}], "labels": [...], "usage": {...}}
"""

import time

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lorica.serve.http.errors import ApiError
from lorica.serve.http.gate import record_of
from lorica.serve.http.reading import read
from lorica.serve.http.schemas import ClassifyAsked
from lorica.serve.http.served import served


async def classify(request: Request) -> Response:
    here = served(request)
    asked = await read(request, ClassifyAsked, here.limits)
    name = asked.model.removeprefix(f"{here.names.base}:")
    if name not in here.outside.classifiers:
        raise ApiError(404, f"The model `{asked.model}` classifies nothing here", param="model", code="model_not_found")
    record = record_of(request.scope)
    record.adapter = name
    found = await here.outside.classified(name, asked.input)
    tokens = record.prompt_tokens = sum(each.tokens for each in found)
    here.metrics.counted(name, prompt=tokens, reused=0, written=0)
    labels = list(here.outside.classifiers[name].labels)
    data = [
        {"index": number, "label": each.label, "probs": list(each.probs), "num_classes": len(labels)}
        for number, each in enumerate(found)
    ]
    head = {"id": record.id.replace("req-", "classify-"), "object": "list", "created": int(time.time())}
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({**head, "model": name, "labels": labels, "data": data, "usage": usage})
