"""The server's application on a fake engine, and ways to ask it: on an event loop of one's own, and over a socket.

Nothing here is asserted: `python -O` takes assertions away everywhere but in test files.
"""

import asyncio
import io
import json
import socket
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fake_engine import END, ByteTokenizer, FakeEngine, FakeShelf

from lorica.data import own_renderer
from lorica.serve.http.app import app
from lorica.serve.http.choosing import Names, Origin
from lorica.serve.http.limits import HttpLimits
from lorica.serve.http.listening import bound, serve
from lorica.serve.http.loading import Loads, Root
from lorica.serve.http.logs import Log
from lorica.serve.http.metrics import Metrics
from lorica.serve.http.outside import Outside
from lorica.serve.http.page import Page
from lorica.serve.http.security import Security
from lorica.serve.http.served import Served
from lorica.serve.http.texts import Texts

KEY, OTHER, ADMIN = "user-key-0123456789", "other-key-0123456789", "admin-key-0123456789"
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


@dataclass(eq=False)
class Made:
    """An application, and what it is made of."""

    app: Any
    served: Served
    engine: FakeEngine
    shelf: FakeShelf
    log: io.StringIO

    def ask(self, method: str, path: str, body: Any = None, **options: Any) -> "Answer":
        return asyncio.run(asked(self.app, method, path, body, **options))

    def chat(self, text: str = "hello", **fields: Any) -> "Answer":
        messages = [{"role": "user", "content": text}]
        return self.ask("POST", "/v1/chat/completions", {"model": "base", "messages": messages, **fields})

    def complete(self, **fields: Any) -> "Answer":
        return self.ask("POST", "/v1/completions", {"model": "base", "prompt": "hello", **fields})


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        return self.json["error"]

    @property
    def events(self) -> list[Any]:
        """Of a stream, without the last."""
        lines = [line.removeprefix("data: ") for line in self.body.decode().split("\n\n") if line]
        return [json.loads(line) for line in lines if line != "[DONE]"]


def made(
    *,
    adapters: Sequence[str] = ("sql", "json"),
    plain: Sequence[str] = (),
    root: Path | None = None,
    limits: HttpLimits = HttpLimits(),  # noqa: B008 (frozen)
    admin: str | None = ADMIN,
    context: int | None = 4096,
    merged: str | None = None,
    outside: Outside | None = None,
    writes: bool = True,
    **engine: Any,
) -> Made:
    shelf = FakeShelf(dict.fromkeys(adapters, 1))
    decoding, log = FakeEngine(shelf, **engine), io.StringIO()
    origins = {name: Origin(folder=name, plain=name in plain) for name in adapters}
    names = Names(base="tiny", created=1, adapters=shelf, merged=merged, origins=origins)
    metrics, written = Metrics(decoding.stats), Log(log)
    served = Served(
        names=names,
        metrics=metrics,
        limits=limits,
        loads=Loads(names, metrics, written, shelf, None if root is None else Root(root)),
        page=Page.of_package(),
        outside=outside or Outside(),
        engine=decoding if writes else None,  # type: ignore[arg-type]
        texts=texts(context) if writes else None,
    )
    return Made(app(served, Security(keys=(KEY, OTHER), admin=admin), written), served, decoding, shelf, log)


def texts(context: int | None = 4096) -> Texts:
    tokenizer = ByteTokenizer()
    return Texts(tokenizer, own_renderer(tokenizer, TEMPLATE), frozenset({END}), context, END + 1, widest=1)


@dataclass(eq=False)
class Wire:
    """One ASGI request: what the application is given, and what it said."""

    app: Any
    scope: dict[str, Any]
    incoming: "asyncio.Queue[dict[str, Any]]" = field(default_factory=asyncio.Queue)
    said: list[dict[str, Any]] = field(default_factory=list)
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> Answer:
        await self.app(self.scope, self.incoming.get, self._send)
        return self.answer

    async def _send(self, message: dict[str, Any]) -> None:
        self.said.append(message)
        if message.get("body") or message["type"] == "websocket.close":
            self.begun.set()

    @property
    def answer(self) -> Answer:
        head = next((each for each in self.said if each["type"] == "http.response.start"), None)
        if head is None:
            return Answer(0, {}, b"")
        headers = {name.decode(): value.decode() for name, value in head["headers"]}
        return Answer(head["status"], headers, b"".join(each.get("body", b"") for each in self.said[1:]))


def wire(
    app: Any,
    method: str,
    path: str,
    body: Any = None,
    *,
    key: str | None = KEY,
    headers: Sequence[tuple[str, str]] = (),
    host: str | None = "127.0.0.1:8000",
    kind: str | None = "application/json",
) -> Wire:
    """`headers` come behind the usual ones; None leaves one of those out."""
    content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    usual = {"host": host, "authorization": key and f"Bearer {key}", "content-type": kind if content else None}
    given = [(name, value) for name, value in usual.items() if value is not None]
    given += [("content-length", str(len(content)))] if content else []
    made = Wire(
        app,
        {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in [*given, *headers]],
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 8000),
            "state": {},
        },
    )
    made.incoming.put_nowait({"type": "http.request", "body": content, "more_body": False})
    return made


async def asked(app: Any, method: str, path: str, body: Any = None, **options: Any) -> Answer:
    return await asyncio.wait_for(wire(app, method, path, body, **options).run(), 30)


async def events(stream: AsyncIterator[Any]) -> list[Any]:
    return [each async for each in stream]


@contextmanager
def listening(made: Made, limits: HttpLimits = HttpLimits()):  # noqa: B008 (frozen)
    """The application on a free port, in a thread of this process; gives the port."""

    from lorica.serve.http import listening as module

    sock, ready, kept = bound("127.0.0.1", 0), threading.Event(), []

    class Kept(module.Announced):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            kept.append(self)

    before, module.Announced = module.Announced, Kept  # type: ignore[misc]
    thread = threading.Thread(target=serve, args=(made.app, sock, limits, Log(made.log), ready.set), daemon=True)
    thread.start()
    try:
        if not ready.wait(20):
            raise RuntimeError("the server did not start")
        yield sock.getsockname()[1]
    finally:
        module.Announced = before  # type: ignore[misc]
        kept[0].should_exit = True
        thread.join(15)
        sock.close()


def raw(port: int, content: bytes, seconds: float = 5.0) -> bytes:
    """What the server says to these bytes, until it closes or says nothing for so long."""
    with socket.create_connection(("127.0.0.1", port), seconds) as connection:
        with suppress(OSError):  # it may have hung up before the end
            connection.sendall(content)
        return heard(connection)


def heard(connection: socket.socket) -> bytes:
    found = b""
    try:
        while part := connection.recv(1 << 16):
            found += part
    except OSError:
        return found
    return found
