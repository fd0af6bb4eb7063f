"""The security table: one row a failure that others' servers had, and each with the sabotage that turns it red.

A row is a claim about an application; it holds for ours, and fails once what guards it is taken away.  The whole file
runs again under `python -O`, where assertions of the source are gone.
"""

import ast
import asyncio
import hmac
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from fake_engine import FakeEngine
from http_app import ADMIN, KEY, OTHER, asked, heard, listening, made, raw, wire
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse

from lorica.api import serving
from lorica.errors import RequestError
from lorica.serve.http import app as app_file
from lorica.serve.http import (
    chat,
    completions,
    errors,
    gate,
    loading,
    logs,
    reading,
    schemas,
    security,
    writing,
)
from lorica.serve.http import texts as texts_file
from lorica.serve.http.limits import HttpLimits
from lorica.serve.http.security import Level, Levels, Security

HTTP = Path(app_file.__file__).parent
OPEN = {("GET", "/"), ("GET", "/static/{file}"), ("GET", "/healthz")}
Break = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Row:
    name: str
    holds: Callable[[Path], None]
    broken: Break


ROWS: list[Row] = []


def row(broken: Break) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    def kept(holds: Callable[[Path], None]) -> Callable[[Path], None]:
        ROWS.append(Row(holds.__name__, holds, broken))
        return holds

    return kept


def set_to(owner: Any, name: str, value: Any) -> Break:
    return lambda patch: patch.setattr(owner, name, value, raising=False)


def all_of(*breaks: Break) -> Break:
    def broken(patch: pytest.MonkeyPatch) -> None:
        for each in breaks:
            each(patch)

    return broken


def by_url(self: Levels, scope: Any) -> tuple[Level, str]:
    """As CVE-2026-48746: the path of a URL that is built from the Host header."""
    host = dict(scope["headers"])[b"host"].decode()
    path = urlsplit(f"http://{host}{scope['path']}").path
    return (Level.open if path in ("/", "/healthz") else Level.user), path


@row(all_of(set_to(Levels, "of", by_url), set_to(Security, "_host", lambda *_: "x")))
def a_host_header_opens_no_route(tmp_path: Path) -> None:
    for host in ("127.0.0.1/healthz?", "x/healthz?", "127.0.0.1:8000/healthz#", "a@127.0.0.1/healthz?"):
        assert made().ask("GET", "/v1/models", key=None, host=host).status in (400, 401, 421)


@row(set_to(Levels, "of", lambda self, scope: (Level.open if "v1/m" in scope["path"] else Level.user, "-")))
def every_route_but_the_shell_and_the_state_asks_for_a_key(tmp_path: Path) -> None:
    here = made(root=tmp_path)
    for route in here.app.routes:
        for method in route.methods:
            if (method, route.path) in OPEN:
                continue
            path = re.sub(r"\{.*?\}", "x", route.path)
            assert here.ask(method, path, {}, key=None).status == 401, (method, path)
            assert here.ask(method, path, {}, key="wrong").status == 401, (method, path)
    assert here.ask("GET", "/no/such/path", key=None).status == 401


@row(lambda patch: patch.setattr(Levels, "of", lambda self, scope: (Level.user, "-")))
def a_route_that_has_no_level_is_for_the_admin(tmp_path: Path) -> None:
    here = made()

    async def forgotten(request: HttpRequest) -> JSONResponse:
        return JSONResponse({})

    here.app.add_api_route("/forgotten", forgotten, methods=["GET"])
    assert here.ask("GET", "/forgotten", key=None).status == 401
    assert here.ask("GET", "/forgotten").status == 403
    assert here.ask("GET", "/forgotten", key=ADMIN).status == 200


ADMINISTERS = (
    ("POST", "/v1/adapters", {"name": "new"}),
    ("PUT", "/v1/adapters/sql", {}),
    ("DELETE", "/v1/adapters/sql", None),
    ("POST", "/v1/load_lora_adapter", {"lora_name": "new", "lora_path": "new"}),
    ("POST", "/v1/unload_lora_adapter", {"lora_name": "sql"}),
)


@row(
    lambda patch: patch.setattr(
        app_file, "ROUTES", tuple(r._replace(level=Level.user) for r in app_file.ROUTES if r.level is Level.admin)
    )
)
def adapters_are_changed_with_the_admin_key_alone(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    for here in (made(root=tmp_path), made(root=tmp_path, admin=None)):
        for method, path, body in ADMINISTERS:
            assert here.ask(method, path, body).status == 403, (method, path)
            assert here.ask(method, path, body, key=None).status == 401
        assert set(here.shelf.names) == {"sql", "json"}
    assert made(root=tmp_path).ask("POST", "/v1/adapters", {"name": "new"}, key=ADMIN).status == 201


@row(set_to(security, "same_key", lambda given, known: given in list(known)))
def keys_are_compared_in_constant_time(tmp_path: Path) -> None:
    compared = []
    kept = hmac.compare_digest
    try:
        security.hmac.compare_digest = lambda a, b: compared.append((len(a), len(b))) or kept(a, b)  # type: ignore[assignment]
        found = [security.same_key(given, [KEY, OTHER]) for given in (KEY, OTHER, "wrong", "")]
    finally:
        security.hmac.compare_digest = kept  # type: ignore[assignment]
    assert found == [True, True, False, False]
    assert compared == [(32, 32)] * 8, "every key, whichever fits, and digests of one length"


def anywhere(self: loading.Root, name: str) -> Path:
    found = self.path / name
    if not found.exists():
        raise errors.ApiError(404, f"no {found}")
    return found


OUTSIDE = (
    "..",
    "../outside",
    "a/../../outside",
    "inside/../../outside",
    "link",
    "linked_file",
    "pipe",
    "linked_run",
    "run/adapter",
    ".",
    "",
    "%2e%2e",
    "..%2foutside",
    "inside\x00",
    "inside\n",
    "inside/",
    "./inside",
    "~",
    "in side",
    "ｉnside",
    "C:inside",
    "\\\\host\\share",
    "x" * 65,
)


def folders(tmp_path: Path) -> Path:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root / "inside", root / "linked_file", root / "pipe", outside):
        folder.mkdir(parents=True)
    (outside / "secret").write_text("x")
    (root / "link").symlink_to(outside)
    for run in (root / "run", root / "linked_run", outside / "adapter"):
        (run / "checkpoints").mkdir(parents=True)
    (root / "run/adapter").mkdir()
    for adapter in (root / "run/adapter", outside / "adapter"):
        (adapter / "adapter_config.json").write_text("{}")
    (root / "linked_run/adapter").symlink_to(outside / "adapter")
    (root / "linked_file/adapter_config.json").symlink_to(outside / "secret")
    os.mkfifo(root / "pipe/adapter_config.json")
    return root


@row(set_to(loading.Root, "folder", anywhere))
def adapters_are_found_by_name_under_the_root_alone(tmp_path: Path) -> None:
    root = folders(tmp_path)
    here = made(root=root)
    for name in (*OUTSIDE, str(tmp_path / "outside"), "/etc"):
        for path, body in (
            ("/v1/load_lora_adapter", {"lora_name": "new", "lora_path": name}),
            ("/v1/adapters", {"name": "new", "folder": name}),
        ):
            answer = here.ask("POST", path, body, key=ADMIN)
            assert answer.status in (400, 404), name
    assert "new" not in here.shelf.names
    assert here.ask("POST", "/v1/adapters", {"name": "new", "folder": "inside"}, key=ADMIN).status == 201
    assert here.ask("POST", "/v1/adapters", {"name": "run"}, key=ADMIN).status == 201
    assert here.served.names.origins["run"].folder == "run", "whose adapter lies one deeper"


@row(set_to(loading.Root, "folder", anywhere))
def absent_and_outside_have_one_answer(tmp_path: Path) -> None:
    here = made(root=folders(tmp_path))
    said = {
        here.ask("POST", "/v1/adapters", {"name": "new", "folder": name}, key=ADMIN).body
        for name in ("absent", "../outside", "../absent", "link", str(tmp_path / "outside"), "/etc/passwd")
    }
    assert len(said) == 1
    assert str(tmp_path).encode() not in said.pop()


@row(set_to(loading, "NAME", re.compile(".*", re.DOTALL)))
def adapters_are_named_by_plain_names(tmp_path: Path) -> None:
    here = made(root=folders(tmp_path))
    for name in ("../x", ".hidden", "a b", "a\nb", "a/b", "-x", "\u202ex", "x" * 65):
        answer = here.ask("POST", "/v1/adapters", {"name": name, "folder": "inside"}, key=ADMIN)
        assert answer.status == 400, name
    for name in ("base", "tiny"):
        answer = here.ask("POST", "/v1/adapters", {"name": name, "folder": "inside"}, key=ADMIN)
        assert answer.status == 400, "it would take the place of the base"


def harmless(*names: str) -> Break:
    def broken(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(schemas.ChatAsked, "harmless", schemas.ChatAsked.harmless | set(names))
        patch.setattr(schemas.CompletionAsked, "harmless", schemas.CompletionAsked.harmless | set(names))

    return broken


@row(harmless("chat_template", "chat_template_kwargs"))
def no_request_brings_a_template(tmp_path: Path) -> None:
    here = made()
    for field in ({"chat_template": "{{ cycler.__init__.__globals__ }}"}, {"chat_template_kwargs": {"tokenize": True}}):
        answer = here.chat(**field)
        assert answer.status == 400
        assert next(iter(field)) in answer.error["message"]


@row(harmless("prompt_embeds"))
def no_request_brings_tensors(tmp_path: Path) -> None:
    here = made()
    assert here.complete(prompt_embeds="gASVIAAAAAAAAACMBXBvc2l4").status == 400
    assert here.chat(prompt_embeds="gASVIAAAAAAAAACMBXBvc2l4").status == 400


@row(harmless("cache_salt"))
def nobody_chooses_whose_prefix_is_reused(tmp_path: Path) -> None:
    assert made().chat(cache_salt="theirs").status == 400


@row(set_to(security, "tenant_of", lambda key: "everybody"))
def what_is_reused_stays_with_its_key(tmp_path: Path) -> None:
    here = made()
    for key in (KEY, OTHER, KEY):
        here.ask("POST", "/v1/completions", {"model": "base", "prompt": "x"}, key=key)
    first, other, again = (request.tenant for request in here.engine.asked)
    assert first == again != other
    assert KEY not in first


def fetching(value: Any) -> Any:
    return "".join(part.get("text", "fetched") for part in value) if isinstance(value, list) else value


class Fetches(schemas.ChatAsked):
    messages: list[Any]  # type: ignore[assignment]


def fetches(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(chat, "ChatAsked", Fetches)
    patch.setattr(texts_file.Texts, "conversation", lambda self, messages, plain: (1, 2))


@row(fetches)
def no_url_is_fetched(tmp_path: Path) -> None:
    here = made()
    for part in (
        {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}},
        {"type": "input_audio", "input_audio": {"data": "x"}},
        {"type": "file", "file": {"file_id": "/etc/passwd"}},
        {"type": "text", "text": "x", "image_url": "file:///etc/passwd"},
    ):
        answer = here.ask(
            "POST", "/v1/chat/completions", {"model": "base", "messages": [{"role": "user", "content": [part]}]}
        )
        assert answer.status == 400
        assert answer.error["param"] == "messages[0].content"


FETCHERS = {
    "urllib",
    "requests",
    "httpx",
    "httpx2",
    "http",
    "ftplib",
    "huggingface_hub",
    "socket",
    "subprocess",
    "pickle",
}


def imports_of(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {each.name.partition(".")[0] for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


@cache
def sources() -> dict[str, ast.AST]:
    return {path.name: ast.parse(path.read_text()) for path in HTTP.glob("*.py")}


def with_source(text: str) -> Break:
    own = sources
    return lambda patch: patch.setitem(globals(), "sources", lambda: own() | {"new.py": ast.parse(text)})


@row(with_source("import urllib.request"))
def nothing_here_can_fetch_or_start_a_program(tmp_path: Path) -> None:
    for name, tree in sources().items():
        allowed = {"socket"} if name == "listening.py" else set()
        assert not imports_of(tree) & FETCHERS - allowed, name


@row(with_source("assert key == known"))
def no_check_is_an_assertion(tmp_path: Path) -> None:
    for name, tree in sources().items():
        assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)], name


@row(with_source("import re\nre.compile(pattern)"))
def no_pattern_comes_from_a_request(tmp_path: Path) -> None:
    """ReDoS: every pattern is written in the source."""
    for name, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = getattr(node.func.value, "id", "")
                if owner == "re":
                    assert isinstance(node.args[0], ast.Constant), name


@row(with_source("key = hash(tokens)"))
def no_key_is_made_with_hash(tmp_path: Path) -> None:
    for name, tree in sources().items():
        called = [n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
        assert not {"hash", "eval", "exec", "compile", "__import__"} & set(called), name


SLOW = 0.4


async def on_the_loop(self: Any, work: Callable[[], Any]) -> Any:
    return work()


@row(set_to(texts_file.Texts, "_beside", on_the_loop))
def a_long_prompt_is_read_beside_the_event_loop(tmp_path: Path) -> None:
    here, begun, read = made(), threading.Event(), []

    def slow_prompt(prompt: Any) -> tuple[int, ...]:
        begun.set()
        time.sleep(SLOW)
        read.append(prompt)
        return (1, 2)

    here.served.texts.prompt = slow_prompt  # type: ignore[union-attr, method-assign]

    async def meanwhile() -> list[bool]:
        slow = asyncio.create_task(asked(here.app, "POST", "/v1/completions", {"model": "base", "prompt": "x"}))
        while not begun.is_set():
            await asyncio.sleep(0.005)
        answered = []
        for _ in range(5):
            await asked(here.app, "GET", "/healthz")
            answered.append(not read)
        await slow
        return answered

    assert asyncio.run(meanwhile()) == [True] * 5


class Loose(schemas.ChatAsked):
    n: int = 1
    max_tokens: int | None = None
    stop: Any = None


def loose(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(chat, "ChatAsked", Loose)


TOO_MUCH = (
    {"n": 100},
    {"n": 1_000_000},
    {"max_tokens": 1_000_000_000},
    {"max_completion_tokens": 10**40},
    {"stop": ["x"] * 100_000},
    {"stop": ["x" * 300]},
    {"stop": [""]},
    {"temperature": 1e300},
    {"temperature": -1},
    {"top_p": 0},
    {"top_k": -2},
    {"logprobs": True, "top_logprobs": 21},
    {"seed": 1 << 63},
    {"logit_bias": {"no id": 1}},
    {"messages": []},
    {"messages": [{"role": "user", "content": "x"}] * 2000},
    {"adapters": [{"name": "sql", "weight": 1e9}]},
    {"adapters": [{"name": "sql"}] * 9},
)


@row(loose)
def one_request_takes_no_more_than_its_share(tmp_path: Path) -> None:
    here = made()
    for fields in TOO_MUCH:
        assert here.chat(**fields).status == 400, fields
    assert not here.engine.asked
    assert here.chat().status == 200


@row(set_to(reading, "_too_large", lambda most: errors.ApiError(200, "")))
def a_body_is_no_larger_than_it_may_be(tmp_path: Path) -> None:
    here = made(limits=HttpLimits(body_bytes=1000))
    large = b'{"model": "base", "prompt": "' + b"x" * 2000 + b'"}'
    assert here.ask("POST", "/v1/completions", large).status == 413
    chunked = wire(here.app, "POST", "/v1/completions", large)
    chunked.scope["headers"] = [each for each in chunked.scope["headers"] if each[0] != b"content-length"]
    assert asyncio.run(chunked.run()).status == 413, "whatever length was stated"
    assert here.chat().status == 200


@row(set_to(reading, "_require_flat", lambda value, depth: None))
def a_body_is_no_deeper_than_it_may_be(tmp_path: Path) -> None:
    here = made()
    deep = b'{"model": "base", "prompt": "x", "metadata": ' + b"[" * 40 + b"]" * 40 + b"}"
    assert here.ask("POST", "/v1/completions", deep).status == 400
    deepest = b'{"model": "base", "prompt": "x", "metadata": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    assert here.ask("POST", "/v1/completions", deepest).status == 400
    assert here.chat().status == 200


@row(all_of(set_to(reading, "_not_json", lambda name: 0.0), set_to(reading, "_unique", dict)))
def a_body_is_json_that_everybody_reads_alike(tmp_path: Path) -> None:
    here = made()
    for body in (
        b'{"model": "base", "prompt": "x", "temperature": NaN}',
        b'{"model": "base", "prompt": "x", "temperature": -Infinity}',
        b'{"model": "sql", "prompt": "x", "model": "base"}',
    ):
        assert here.ask("POST", "/v1/completions", body).status == 400


def any_type(patch: pytest.MonkeyPatch) -> None:
    async def read(request: HttpRequest, kind: Any, limits: HttpLimits) -> Any:
        return reading._value(await reading._body(request, limits), kind, limits.depth)

    patch.setattr(completions, "read", read)


@row(any_type)
def a_form_of_a_web_page_is_no_request(tmp_path: Path) -> None:
    """A page may send text/plain anywhere without asking first."""
    body = b'{"model": "base", "prompt": "x"}'
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None):
        assert made().ask("POST", "/v1/completions", body, kind=kind).status == 415


@row(set_to(gate.Gate, "open", property(lambda self: 0, lambda self, value: None)))
def what_is_open_at_once_is_bounded(tmp_path: Path) -> None:
    here = made(limits=HttpLimits(requests=2), delay=0.02)

    async def many() -> list[Any]:
        body = {"model": "base", "prompt": "x", "max_tokens": 4}
        return await asyncio.gather(*(asked(here.app, "POST", "/v1/completions", body) for _ in range(6)))

    answers = asyncio.run(many())
    refused = [answer for answer in answers if answer.status == 429]
    assert len(refused) == 4
    assert all(answer.headers["retry-after"] == "1" for answer in refused)
    assert here.chat(max_tokens=1).status == 200


@row(set_to(FakeEngine, "room", property(lambda self: 10**6, lambda self, value: None)))
def a_full_queue_is_told_as_one(tmp_path: Path) -> None:
    here = made(room=0)
    answer = here.chat()
    assert answer.status == 429
    assert answer.headers["retry-after"] == "1"
    assert answer.error["type"] == "rate_limit_error"


@row(set_to(Security, "_host", lambda self, headers, scope: headers.get("host", "")))
def a_name_that_points_here_is_not_answered(tmp_path: Path) -> None:
    """DNS rebinding: a page of evil.example whose name has become ours."""
    here = made()
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8000", "", "127.0.0.1:x", None):
        assert here.ask("GET", "/healthz", host=host).status == 421, host
    assert here.ask("GET", "/healthz", headers=[("host", "evil.example")]).status == 421, "two of them"
    for host in ("127.0.0.1", "localhost:8000", "LOCALHOST", "[::1]:8000"):
        assert here.ask("GET", "/healthz", host=host).status == 200


@row(set_to(Security, "_origin", lambda self, headers, host: None))
def pages_of_others_may_not_ask(tmp_path: Path) -> None:
    here = made()
    for origin in (
        "http://evil.example",
        "null",
        "http://127.0.0.1:9",
        "file://",
        "http://127.0.0.1:8000.evil.example",
    ):
        for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("OPTIONS", "/v1/models")):
            answer = here.ask(method, path, headers=[("origin", origin)])
            assert answer.status == 403, origin
            assert not [name for name in answer.headers if name.startswith("access-control")]
    assert here.ask("GET", "/v1/models", headers=[("origin", "http://127.0.0.1:8000")]).status == 200


@row(set_to(gate, "HEADERS", {"access-control-allow-origin": "*"}))
def no_answer_invites_other_pages(tmp_path: Path) -> None:
    here = made()
    for answer in (here.ask("GET", "/"), here.ask("GET", "/v1/models"), here.ask("GET", "/x"), here.chat(n=0)):
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"


SECRET = "the prompt of somebody"


@row(set_to(security, "tenant_of", lambda key: key))
def neither_keys_nor_prompts_are_logged(tmp_path: Path) -> None:
    here = made()
    here.chat(SECRET)
    here.chat(SECRET, stream=True)
    here.chat(SECRET, model=SECRET)
    here.complete(prompt=SECRET, unknown=SECRET)
    here.ask("GET", f"/v1/models/{SECRET}", key=ADMIN)
    here.ask("GET", "/v1/models", key=SECRET)
    told = here.log.getvalue()
    assert told.count("\n") == 6
    assert not [word for word in (KEY[:8], ADMIN[:8], "somebody") if word in told]


@row(lambda patch: patch.setattr(logs.Log, "write", lambda self, event, **f: self.stream.write(f"{event} {f}\n")))
def a_line_of_the_log_is_one_line(tmp_path: Path) -> None:
    here = made(root=tmp_path)
    (tmp_path / "x").mkdir()
    here.shelf.hook = lambda name: here.served.loads.log.write("said", words="a\nb\x1b[2J\u2028c")
    here.ask("POST", "/v1/adapters", {"name": "x"}, key=ADMIN)
    here.ask("GET", "/v1/models/%0d%0ax\r\n{\u2028")
    for line in here.log.getvalue().split("\n")[:-1]:
        assert line.isascii()
        assert line.isprintable()
        assert line.startswith('{"time": ')


def tells_all(error: BaseException) -> errors.ApiError:
    return errors.ApiError(500, repr(error))


@row(set_to(gate, "api_error", tells_all))
def an_exception_is_told_as_nothing_but_one(tmp_path: Path) -> None:
    here = made()

    def fails(request: Any) -> Any:
        raise RuntimeError(f"{SECRET} at /some/path.py")

    here.engine.submit = lambda request, listener: fails(request)  # type: ignore[method-assign]
    answer = here.chat()
    assert answer.status == 500
    assert answer.error["type"] == "server_error"
    assert b"somebody" not in answer.body
    assert b"Traceback" not in answer.body
    assert SECRET not in here.log.getvalue()
    assert "RuntimeError" in here.log.getvalue(), "the log says what, and where"
    del here.engine.submit
    assert here.chat().status == 200, "and the server goes on"


@row(set_to(writing.Writing, "close", lambda self: None))
def who_leaves_is_not_written_for(tmp_path: Path) -> None:
    def endless(request: Any) -> Any:
        while True:
            yield 65

    here = made(script=endless, delay=0.01)

    async def left(**fields: Any) -> None:
        body = {"model": "base", "prompt": "x", "max_tokens": 4000, **fields}
        asking = wire(here.app, "POST", "/v1/completions", body)
        running = asyncio.create_task(asking.run())
        await asyncio.wait_for(asking.begun.wait(), 5) if fields else await asyncio.sleep(0.1)
        asking.incoming.put_nowait({"type": "http.disconnect"})
        await asyncio.wait_for(running, 5)

    asyncio.run(left(stream=True))
    asyncio.run(left())
    until = time.monotonic() + 2
    while here.engine.running and time.monotonic() < until:
        time.sleep(0.01)
    assert here.engine.running == 0
    assert here.engine.cancelled == 2


def never_late(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(writing, "_failure", lambda ended: errors.ApiError(200, ""))


@row(never_late)
def an_answer_that_takes_too_long_is_cut_off(tmp_path: Path) -> None:
    here = made(delay=0.02, limits=HttpLimits(seconds=0.05))
    assert here.chat().status == 504
    streamed = here.chat(stream=True)
    assert streamed.events[-1]["error"]["code"] == "deadline_exceeded"
    assert not streamed.body.endswith(b"[DONE]\n\n")


@row(set_to(reading, "_body", lambda request, limits: reading._whole(request, limits.body_bytes)))
def a_body_that_does_not_come_is_not_waited_for(tmp_path: Path) -> None:
    here = made(limits=HttpLimits(body_seconds=0.05))
    asking = wire(here.app, "POST", "/v1/completions", {"model": "base", "prompt": "x"})
    asking.incoming.get_nowait()
    asking.incoming.put_nowait({"type": "http.request", "body": b"{", "more_body": True})

    async def patient() -> int:
        try:
            return (await asyncio.wait_for(asking.run(), 1)).status
        except TimeoutError:
            return 0

    assert asyncio.run(patient()) == 408


def a_route_for_sockets(patch: pytest.MonkeyPatch) -> None:
    async def open_all(self: Any, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})

    patch.setattr(gate.Gate, "__call__", open_all)


@row(a_route_for_sockets)
def web_sockets_are_closed(tmp_path: Path) -> None:
    asking = wire(made().app, "GET", "/v1/models")
    asking.scope["type"] = "websocket"
    asyncio.run(asking.run())
    assert [each["type"] for each in asking.said] == ["websocket.close"]


@row(set_to(serving, "is_loopback", lambda host: True))
def only_this_machine_is_served_without_a_key(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "192.0.2.1", "::", "example.org"):
        with pytest.raises(RequestError, match="choose a key"):
            serving.serve("embedded", host=host, port=-1)


@row(set_to(Security, "__post_init__", lambda self: None))
def a_server_has_a_key_and_the_admin_another(tmp_path: Path) -> None:
    for keys, admin in (((), None), (("",), None), (("a b",), None), (("é",), None), (("same",), "same")):
        with pytest.raises(RequestError):
            Security(keys=keys, admin=admin)
    assert KEY not in repr(Security(keys=(KEY,), admin=ADMIN))


ON_WIRE = HttpLimits(header_bytes=8000, header_seconds=0.3)


def patient_forever(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(globals(), "ON_WIRE", replace(ON_WIRE, header_bytes=4 << 20, header_seconds=60))


@row(patient_forever)
def the_head_of_a_request_is_short_and_comes_at_once(tmp_path: Path) -> None:
    import socket

    with listening(made(), ON_WIRE) as port:
        head = f"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n"
        assert raw(port, f"{head}\r\n".encode()).startswith(b"HTTP/1.1 200")
        long = raw(port, f"{head}x: {'y' * 1_000_000}\r\n\r\n".encode())
        assert not long.startswith(b"HTTP/1.1 200")
        with socket.create_connection(("127.0.0.1", port), 4) as slow:
            slow.sendall(b"GET /healthz HT")
            started = time.monotonic()
            assert heard(slow) == b""
            assert time.monotonic() - started < 3.5, "it hung up, and was not waited out"
        with socket.create_connection(("127.0.0.1", port), 4) as kept:
            kept.sendall(f"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n\r\n".encode())
            assert kept.recv(1 << 16).startswith(b"HTTP/1.1 200")
            for part in (b"GET /he", b"al", b"th"):
                time.sleep(0.05)
                with suppress(OSError):  # it may have hung up already
                    kept.sendall(part)
            started = time.monotonic()
            assert b"200" not in heard(kept)
            assert time.monotonic() - started < 3.5, "nor is the second, however it drips"
        assert raw(port, f"{head}\r\n".encode()).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("each", ROWS, ids=lambda each: each.name)
def test_the_row_holds(each: Row, tmp_path: Path) -> None:
    each.holds(tmp_path)


@pytest.mark.parametrize("each", ROWS, ids=lambda each: each.name)
def test_the_row_fails_without_its_guard(each: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    each.broken(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        each.holds(tmp_path)


def test_the_rows_hold_without_assertions_in_the_source() -> None:
    quiet = ["-W", "ignore::pytest.PytestConfigWarning"]
    done = subprocess.run(
        [sys.executable, "-O", "-m", "pytest", __file__, "-k", "test_the_row_holds", *quiet],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert f"{len(ROWS)} passed" in done.stdout, done.stdout[-300:]
