"""A server with the page's routes whose answers are scripted, for tests of the page alone.

It can hold every stream after a number of tokens, refuse what it is told to refuse, and remembers what it was asked.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import lorica

STATIC = Path(lorica.__file__).parent / "serve" / "http" / "static"
KEY = "a-key-of-the-tests"
BASE = "tiny-base"
TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
Body = dict[str, Any]


def who(body: Body) -> str:
    """Whose answer a request asks for: `sql`, `0.7 sql + 0.3 json`, or the base."""
    return " + ".join(f"{each['weight']:g} {each['name']}" for each in body.get("adapters", ())) or body["model"]


def told(body: Body) -> list[str]:
    """The tokens of an answer: who gives it, then eight numbers."""
    return [f"[{who(body)}]", *(f" {number}" for number in range(8))]


@dataclass
class Script:
    """What the server answers with, and what it was asked."""

    adapters: list[Body] = field(default_factory=lambda: [adapter("sql"), adapter("json"), adapter("dates")])
    tokens: Callable[[Body], list[str]] = told
    pause: float = 0.0
    """Seconds before each token."""
    held_after: int = 3
    """Tokens of each stream before the gate."""
    broken_after: int | None = None
    """Tokens after which every stream breaks off."""
    gate: threading.Event = field(default_factory=threading.Event)
    refusal: tuple[int, str] | None = None
    """Status and message of every answer to a prompt, where there is one."""
    key: str = KEY
    asked: list[tuple[str, Body]] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    """Answers whose reader went away before the end."""
    written: int = 0

    def __post_init__(self) -> None:
        self.gate.set()

    def stats(self) -> Body:
        blocks = {"blocks_used": 12, "blocks_kept": 4, "blocks_free": 240}
        held = {"resident": len(self.adapters), "resident_bytes": sum(each["bytes"] for each in self.adapters)}
        counts = {"running": 2, "waiting": 0, "steps": 9, "read": 40, "written": self.written, "reused": 1_200}
        return {"object": "stats", "base": BASE, "engine": {**counts, **blocks, **held}}


def adapter(name: str, **changed: Any) -> Body:
    known = {"generation": 1, "state": "ready", "rank": 16, "bytes": 2_099_200, "method": "lora", "tier": "device"}
    return {"id": name, "object": "adapter", "parent": BASE, **known, "in_flight": 0, **changed}


class Handler(BaseHTTPRequestHandler):
    server: "ScriptedServer"
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        script = self.server.script
        if self.path == "/" or self.path.startswith("/static/"):
            self.file(self.path.removeprefix("/static/").strip("/") or "index.html")
        elif not self.allowed():
            self.refuse(401, "the API key is not right")
        elif self.path == "/v1/models":
            cards = [{"id": BASE, "parent": None}, *({"id": each["id"], "parent": BASE} for each in script.adapters)]
            self.reply({"object": "list", "data": cards})
        elif self.path == "/v1/adapters":
            self.reply({"object": "list", "data": script.adapters})
        elif self.path == "/v1/stats":
            self.reply(script.stats())
        else:
            self.refuse(404, "no such route")

    def do_POST(self) -> None:
        script = self.server.script
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        script.asked.append((self.path, body))
        if not self.allowed():
            self.refuse(401, "the API key is not right")
        elif script.refusal is not None:
            self.refuse(*script.refusal)
        else:
            self.stream(body)

    def allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.server.script.key}"

    def stream(self, body: Body) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            for event in self.events(body):
                self.wfile.write(f"data: {event}\n\n".encode())
                self.wfile.flush()
        except OSError:
            self.server.script.gone.append(who(body))
        self.close_connection = True

    def events(self, body: Body) -> Iterator[str]:
        script, tokens = self.server.script, self.server.script.tokens(body)
        for number, token in enumerate(tokens):
            self.server.closing.wait(script.pause)
            if number == script.broken_after:
                return
            if number >= script.held_after:
                yield from self.waiting()
            script.written += 1
            choice = {"delta": {"content": token}} if "messages" in body else {"text": token}
            yield json.dumps({"choices": [{"index": 0, "finish_reason": None, **choice}]})
        usage = {"prompt_tokens": 4, "completion_tokens": len(tokens)}
        yield json.dumps({"choices": [], "usage": usage})
        yield "[DONE]"

    def waiting(self) -> Iterator[str]:
        """Comments while the gate is closed, so that a reader that went away is noticed."""
        while not self.server.script.gate.wait(0.02) and not self.server.closing.is_set():
            yield json.dumps({"choices": []})

    def file(self, name: str) -> None:
        path = STATIC / name
        if path.name != name or not path.is_file():
            return self.refuse(404, "no such file")
        return self.send(200, path.read_bytes(), TYPES[path.suffix])

    def reply(self, value: Any) -> None:
        self.send(200, json.dumps(value).encode(), "application/json")

    def refuse(self, status: int, message: str) -> None:
        self.send(status, json.dumps({"error": {"message": message, "code": None}}).encode(), "application/json")

    def send(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
        return None


class ScriptedServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, script: Script) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.closing = script, threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that went away is no error."""


@contextmanager
def scripted(script: Script) -> Iterator[ScriptedServer]:
    server = ScriptedServer(script)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join(5)
