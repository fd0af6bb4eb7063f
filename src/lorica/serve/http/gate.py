"""The gate: every request passes it, every answer leaves through it, and no exception gets behind it."""

import asyncio
import time
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorica.serve.http.errors import AGAIN, CLOSE, ApiError, GoneError, api_error
from lorica.serve.http.limits import HttpLimits
from lorica.serve.http.records import Record, Records
from lorica.serve.http.security import Levels, Security

HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}
RECORD = "lorica.record"
LATE = 30.0
"""Seconds beyond its time after which a request is ended whatever it waits for, as for a client that does not read."""


class Gate:
    """ASGI middleware around the routes."""

    def __init__(
        self, app: ASGIApp, *, levels: Levels, security: Security, limits: HttpLimits, records: Records
    ) -> None:
        self.app, self.levels, self.security = app, levels, security
        self.limits, self.records = limits, records
        self.open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answered(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _answered(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = scope[RECORD] = Record(method=scope["method"])
        leaving = Leaving(send, record)
        self.open += 1
        try:
            await self._admitted(scope, record, receive, leaving)
        except GoneError:
            record.status = 499
        except Exception as error:
            if not isinstance(error, ApiError):
                self.records.failed(record, error)
            await self._told(error, record, scope, receive, leaving)
        finally:
            self.open -= 1
            self.records.finished(record)

    async def _admitted(self, scope: Scope, record: Record, receive: Receive, leaving: "Leaving") -> None:
        level, record.route = self.levels.of(scope)
        try:
            record.tenant = self.security.admit(scope, level)
        except ApiError as error:
            error.headers |= CLOSE  # a body that nobody will read may still be coming
            raise
        if self.open > self.limits.requests:
            raise ApiError(429, "too many requests are open; ask again in a moment", headers=AGAIN | CLOSE)
        try:
            async with asyncio.timeout(self.limits.seconds + LATE):
                await self.app(scope, receive, leaving)
        except TimeoutError:
            raise ApiError(504, "the time of this request was over", headers=CLOSE) from None

    async def _told(self, error: Exception, record: Record, scope: Scope, receive: Receive, leaving: "Leaving") -> None:
        """Half an answer is left unfinished, which its reader can tell; one that has not begun is the error."""
        if not leaving.begun:
            record.error = api_error(error).code
            await api_error(error).response()(scope, receive, leaving)


class Leaving:
    """`send`, noting what is answered and adding what every answer carries."""

    def __init__(self, send: Send, record: Record) -> None:
        self.send, self.record, self.begun = send, record, False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun, self.record.status = True, message["status"]
            self._add(MutableHeaders(scope=message))
        await self.send(message)

    def _add(self, headers: MutableHeaders) -> None:
        for name, value in (HEADERS | {"x-request-id": self.record.id}).items():
            headers[name] = value
        headers.setdefault("cache-control", "no-store")


def record_of(scope: MutableMapping[str, Any]) -> Record:
    """What is noted of the request that is being answered."""
    return scope.setdefault(RECORD, Record(method="", started=time.monotonic()))
