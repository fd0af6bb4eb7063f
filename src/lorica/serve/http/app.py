"""The routes of the server, who may ask each, and what stands around them.

gate (security.py, gate.py) -> route -> reading.py, schemas.py -> choosing.py, texts.py -> writing.py -> the engine
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from lorica.serve.http import adapters, chat, classify, completions, embeddings, models_route, page, status
from lorica.serve.http.errors import api_error
from lorica.serve.http.gate import Gate
from lorica.serve.http.logs import Log
from lorica.serve.http.records import Records
from lorica.serve.http.security import Level, Levels, Security
from lorica.serve.http.served import Served


class Route(NamedTuple):
    method: str
    path: str
    level: Level
    answer: Callable[[Request], Awaitable[Response]]


ROUTES = (
    Route("GET", "/", Level.open, page.shell),
    Route("GET", "/static/{file}", Level.open, page.static),
    Route("GET", "/healthz", Level.open, status.healthz),
    Route("GET", "/metrics", Level.user, status.metrics),
    Route("GET", "/v1/stats", Level.user, status.stats),
    Route("GET", "/v1/models", Level.user, models_route.models),
    Route("GET", "/v1/models/{id:path}", Level.user, models_route.model),
    Route("POST", "/v1/chat/completions", Level.user, chat.chat),
    Route("POST", "/v1/completions", Level.user, completions.completions),
    Route("POST", "/v1/embeddings", Level.user, embeddings.embeddings),
    Route("POST", "/v1/classify", Level.user, classify.classify),
    Route("GET", "/v1/adapters", Level.user, adapters.adapters),
    Route("GET", "/v1/adapters/{name}", Level.user, adapters.adapter),
    Route("POST", "/v1/adapters", Level.admin, adapters.add),
    Route("PUT", "/v1/adapters/{name}", Level.admin, adapters.replace),
    Route("DELETE", "/v1/adapters/{name}", Level.admin, adapters.remove),
    Route("POST", "/v1/load_lora_adapter", Level.admin, adapters.load_lora_adapter),
    Route("POST", "/v1/unload_lora_adapter", Level.admin, adapters.unload_lora_adapter),
)
NO_TELEMETRY = dict.fromkeys(("tracing", "metrics", "logs", "operation_spans", "auto_configure"), False)
"""FastAPI's own would report requests and exceptions to whatever the environment names."""


def app(served: Served, security: Security, log: Log) -> FastAPI:
    """The server as an ASGI application; the engine starts and ends with it."""
    made = FastAPI(
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        lifespan=_running,
        telemetry=NO_TELEMETRY,  # type: ignore[arg-type]
        exception_handlers={HTTPException: _refused},
    )
    made.state.served = served
    for route in ROUTES:
        made.add_api_route(route.path, route.answer, methods=[route.method], response_model=None)
    levels = Levels(made.routes, {(route.method, route.path): route.level for route in ROUTES})
    made.add_middleware(
        Gate, levels=levels, security=security, limits=served.limits, records=Records(log, served.metrics)
    )
    return made


@asynccontextmanager
async def _running(made: FastAPI) -> AsyncIterator[None]:
    served: Served = made.state.served
    served.start()
    try:
        yield
    finally:
        served.close()


async def _refused(request: Request, error: Exception) -> Response:
    return api_error(error).response()
