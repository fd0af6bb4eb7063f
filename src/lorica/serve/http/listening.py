"""Listening: a socket, and the server on it until somebody stops it.

Loopback unless told otherwise, and elsewhere only with a key that somebody chose.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from lorica.errors import RequestError, RunError
from lorica.serve.engine import Engine
from lorica.serve.http.limits import HttpLimits
from lorica.serve.http.logs import Log, taken_over

STOPPING, LAST = 10.0, 1.0
"""Seconds in which requests may end by themselves once the server stops, and those of them at the end in which they are
told that it does: then uvicorn breaks them off."""


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bound(host: str, port: int) -> socket.socket:
    """A socket that nobody is answered on yet.  RequestError for a host that is none, RunError for a port in use."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise RequestError(f"serve: {host!r} is no address of this machine ({error.strerror})") from error
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind(address)
    except OSError as error:
        made.close()
        raise RunError(f"serve: {host}:{port}: {error.strerror}; choose another with --port") from error
    return made


def address_of(listening: socket.socket) -> str:
    """`http://127.0.0.1:8000`"""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(app: FastAPI, listening: socket.socket, limits: HttpLimits, log: Log, ready: Callable[[], None]) -> None:
    """Answers until SIGINT or SIGTERM; `ready` is called when it does."""
    taken_over(log)
    config = uvicorn.Config(
        app,
        http=patient(limits.header_seconds),
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=limits.connections,
        timeout_graceful_shutdown=STOPPING,  # type: ignore[arg-type]
        h11_max_incomplete_event_size=limits.header_bytes,
    )
    Announced(config, ready, partial(_ended, app.state.served.engine)).run(sockets=[listening])


def _ended(engine: Engine | None) -> None:
    """What is still written ends with "cancelled", which clients are told of."""
    if engine is not None:
        with suppress(RunError):  # a pass that takes longer is broken off
            engine.close(LAST)


class Announced(uvicorn.Server):
    """Says when it answers.  `last` is called, in a thread, shortly before requests are broken off."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None], last: Callable[[], None]) -> None:
        super().__init__(config)
        self.ready, self.last = ready, last

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        late = loop.call_later(STOPPING - LAST, lambda: loop.run_in_executor(None, self.last))
        try:
            await super().shutdown(sockets)
        finally:
            late.cancel()


def patient(seconds: float) -> type[asyncio.Protocol]:
    """The protocol of a connection, which is closed when the head of a request takes longer than so many seconds."""

    class Patient(H11Protocol):
        waiting: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            if self.waiting is None and self.conn.their_state is h11.IDLE:
                self._wait()
            super().data_received(data)
            if self.conn.their_state is not h11.IDLE:
                self._waited()

        def connection_lost(self, exc: Exception | None) -> None:
            self._waited()
            super().connection_lost(exc)

        def _wait(self) -> None:
            self.waiting = self.loop.call_later(seconds, self.transport.close)

        def _waited(self) -> None:
            if self.waiting is not None:
                self.waiting.cancel()
                self.waiting = None

    return Patient
