"""How the server does: /healthz for anybody, /metrics and /v1/stats with a key."""

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lorica.serve.http.errors import ApiError
from lorica.serve.http.metrics import numbers_of
from lorica.serve.http.served import served


async def healthz(request: Request) -> Response:
    """It listens once everything is loaded, so that an answer means ready.  503 where the engine has ended."""
    engine = served(request).engine
    if engine is not None and not engine.alive:
        raise ApiError(503, "the engine does not run")
    return JSONResponse({"status": "ok"})


async def metrics(request: Request) -> Response:
    return Response(served(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)


async def stats(request: Request) -> Response:
    """The engine's numbers; per adapter under `by_adapter`, the base as ""."""
    here = served(request)
    engine = {} if here.engine is None else numbers_of(here.engine.stats())
    return JSONResponse({"object": "stats", "base": here.names.base, "engine": engine})
