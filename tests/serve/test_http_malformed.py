"""Requests that are malformed: each is answered with a 4xx in OpenAI's shape, and the next good one is served."""

import json
import random
import socket

import pytest
from fake_engine import FakeEngine
from http_app import ADMIN, KEY, listening, made, raw

from lorica.serve.http import errors, reading
from lorica.serve.http.limits import HttpLimits

MESSAGES = [{"role": "user", "content": "x"}]
GOOD = {"model": "base", "messages": MESSAGES}
BODIES = (
    b"",
    b"{",
    b"[]",
    b"null",
    b"1e999",
    b'"text"',
    b"\xff\xfe{\x00}\x00",
    b"\xef\xbb\xbf{}",
    b'{"model": "base", "messages": [], }',
    b"{'model': 'base'}",
    b'{"model": "base", "messages": 1}',
    b'{"model": "base", "messages": [1]}',
    b'{"model": "base", "messages": [[]]}',
    b'{"model": "base", "messages": [{}]}',
    b'{"model": "base", "messages": {"role": "user"}}',
    b'{"model": "base", "messages": [{"role": "root", "content": "x"}]}',
    b'{"model": "base", "messages": [{"role": "user", "content": 1}]}',
    b'{"model": "base", "messages": [{"role": "user", "content": [1]}]}',
    b'{"model": "base", "messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"model": "base", "messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}',
    b'{"model": "", "messages": [{"role": "user", "content": "x"}]}',
    b'{"model": null, "messages": [{"role": "user", "content": "x"}]}',
    b'{"model": ["base"], "messages": [{"role": "user", "content": "x"}]}',
    b'{"model": "base"}',
    b'{"messages": [{"role": "user", "content": "x"}]}',
    b'{"model": "base", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1' + b"0" * 5000 + b"}",
)
FIELDS = (
    {"temperature": "hot"},
    {"temperature": True},
    {"temperature": [1]},
    {"temperature": 3},
    {"top_p": 2},
    {"n": 0},
    {"n": 1.5},
    {"n": "1"},
    {"n": True},
    {"max_tokens": 0},
    {"max_tokens": -1},
    {"max_tokens": 1.5},
    {"max_tokens": 5, "max_completion_tokens": 6},
    {"stop": 1},
    {"stop": [1]},
    {"stop": {"a": 1}},
    {"stream": "yes"},
    {"stream": 1},
    {"stream_options": {"include_usage": True}},
    {"stream": True, "stream_options": {"other": 1}},
    {"logprobs": 5},
    {"top_logprobs": 5},
    {"seed": "x"},
    {"seed": 1.5},
    {"adapters": []},
    {"adapters": {}},
    {"adapters": [{}]},
    {"adapters": [{"name": "sql", "weight": "1"}]},
    {"adapters": [{"name": "sql", "other": 1}]},
    {"tools": [{"type": "function"}]},
    {"tool_choice": "required"},
    {"functions": [{}]},
    {"response_format": {"type": "json_schema"}},
    {"logit_bias": {"5": 100}},
    {"frequency_penalty": 0.5},
    {"modalities": ["audio"]},
    {"audio": {}},
    {"unknown": 1},
    {"__class__": {}},
    {"": 1},
    {"extra_body": {"a": 1}},
    {"best_of": 3},
)
PROMPTS = (
    "",
    [],
    [[]],
    [""],
    [1, "a"],
    [["a"]],
    [[1], "a", {}],
    [-1],
    [257],
    [10**30],
    [1.5],
    [True],
    {},
    5,
    ["x"] * 300,
    ["x"] * 40,
    "x" * 5000,
    [1] * 5000,
)


def require_refused(answer) -> None:
    assert 400 <= answer.status < 500
    assert set(answer.error) == {"message", "type", "param", "code"}
    assert answer.error["type"] == "invalid_request_error"
    assert answer.error["message"]


@pytest.fixture(scope="module")
def here():
    return made()


@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:60]))
def test_bodies_that_are_no_request(here, body: bytes) -> None:
    kind = [("content-type", "application/json")] if not body else []
    require_refused(here.ask("POST", "/v1/chat/completions", body, headers=kind))
    assert here.chat().status == 200


@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: json.dumps(fields)[:60])
def test_fields_that_are_wrong(here, fields: dict) -> None:
    answer = here.chat(**fields)
    require_refused(answer)
    named = [name for name in fields if name in answer.error["message"]]
    assert named, "the field is named"
    assert here.chat().status == 200


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: json.dumps(prompt)[:40])
def test_prompts_that_are_none(here, prompt: object) -> None:
    require_refused(here.complete(prompt=prompt))
    assert here.complete().status == 200


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/classify", "/v1/adapters", "/v1/load_lora_adapter"])
def test_every_route_refuses_what_it_cannot_read(here, path: str) -> None:
    for body in (b"{", b"[]", b"{}", b'{"model": 1}', b'{"input": [[[]]]}'):
        answer = here.ask("POST", path, body, key=ADMIN)
        assert 400 <= answer.status < 500


def test_many_problems_are_told_as_a_few(here) -> None:
    many = here.chat(**{f"unknown_{number}": 1 for number in range(50_000)})
    some = here.chat(**{f"unknown_{number}": 1 for number in range(40)})
    for answer in (many, some):
        require_refused(answer)
        assert len(answer.body) < 1000
    assert "and 32 more" in some.error["message"]


def test_a_check_that_lets_one_through_is_seen(monkeypatch) -> None:
    """The control: without the strictness of the schemas, wrong types reach the engine."""
    loose = made()
    monkeypatch.setattr(reading, "invalid", lambda error, known: errors.ApiError(200, ""))
    with pytest.raises(AssertionError):
        require_refused(loose.chat(n="1"))


def test_random_damage_to_a_good_request_is_refused_or_served(here) -> None:
    """Never a 5xx: a thousand bodies with bytes changed, taken out and put in."""
    drawn, good = random.Random(0), json.dumps({**GOOD, "temperature": 0.5, "stop": ["a"], "n": 2}).encode()
    seen: dict[int, int] = {}
    for _ in range(1000):
        body = bytearray(good)
        for _ in range(drawn.randrange(1, 4)):
            place = drawn.randrange(len(body))
            match drawn.randrange(3):
                case 0:
                    body[place] = drawn.randrange(256)
                case 1:
                    del body[place]
                case _:
                    body.insert(place, drawn.choice(b'{}[]",:\\0e-\x00\xff'))
        status = here.ask("POST", "/v1/chat/completions", bytes(body)).status
        seen[status] = seen.get(status, 0) + 1
    assert set(seen) <= {200, 400, 404}
    assert seen[400] > 500


HEAD = "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
JSON, KEYED = "content-type: application/json\r\n", f"authorization: Bearer {KEY}\r\n"
ON_WIRE = (
    b"\r\n\r\n\r\n",
    b"GET\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET /healthz HTTP/9.9\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\nhost: 127.0.0.1\r\n\r\n",
    b"GET http://127.0.0.1/healthz HTTP/1.1\r\nhost: evil.example\r\n\r\n",
    b"GET /healthz\x00 HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
    b"GET /%ff%fe HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer \xff\xfe\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\nx: a\r\n b\r\n\r\n",
    f"{HEAD}content-length: -5\r\n\r\n".encode(),
    f"{HEAD}content-length: 5\r\ncontent-length: 6\r\n\r\n".encode(),
    f"{HEAD}content-length: 99999999999999999999999\r\n\r\n".encode(),
    f"{HEAD}transfer-encoding: gzip\r\n\r\n".encode(),
    f"{HEAD}transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n".encode(),
    f"{HEAD}{JSON}{KEYED}transfer-encoding: chunked\r\n\r\nZZ\r\n".encode(),
    f"{HEAD}{JSON}{KEYED}content-length: {64 << 20}\r\n\r\n".encode(),
    f"{HEAD}{JSON}{KEYED}content-encoding: gzip\r\ncontent-length: 3\r\n\r\n\x1f\x08\x00".encode(),
    b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
)


@pytest.fixture(scope="module")
def port():
    limits = HttpLimits(header_bytes=8000, header_seconds=0.3)
    with listening(made(limits=limits), limits) as found:
        yield found


def test_bytes_that_are_no_request_end_no_server(port: int) -> None:
    for content in ON_WIRE:
        said = raw(port, content, 1.0)
        first = said.split(b"\r\n")[0]
        assert not first.startswith(b"HTTP/1.1 5"), content
        good = raw(port, b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
        assert good.startswith(b"HTTP/1.1 200"), content


def test_many_who_connect_and_say_nothing_keep_nobody_out(port: int) -> None:
    silent = [socket.create_connection(("127.0.0.1", port), 5) for _ in range(50)]
    try:
        good = raw(port, b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
        assert good.startswith(b"HTTP/1.1 200")
        assert all(connection.recv(1) == b"" for connection in silent), "each is hung up on"
    finally:
        for connection in silent:
            connection.close()


def test_a_stream_of_requests_of_all_kinds_leaves_nothing_running(here) -> None:
    engine: FakeEngine = here.engine
    for number in range(60):
        (here.chat, here.complete)[number % 2](stream=bool(number % 3), n=1 + number % 3, max_tokens=3)
    assert engine.running == 0
    assert here.served.engine is engine
