"""The body of a request to a value: JSON in UTF-8, within limits, with every problem told at once."""

import asyncio
import json
from typing import Any, NoReturn, TypeVar

import anyio.to_thread
from pydantic import ValidationError
from starlette.requests import Request

from lorica.serve.http.errors import CLOSE, ApiError, GoneError, invalid
from lorica.serve.http.limits import HttpLimits
from lorica.serve.http.schemas import Asked

A = TypeVar("A", bound=Asked)


async def read(request: Request, kind: type[A], limits: HttpLimits) -> A:
    """ApiError 400, 408, 413 or 415; GoneError where the client leaves before the body is whole."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "the body is JSON: send content-type: application/json")
    body = await _body(request, limits)
    return await anyio.to_thread.run_sync(_value, body, kind, limits.depth)


async def _body(request: Request, limits: HttpLimits) -> bytes:
    try:
        async with asyncio.timeout(limits.body_seconds):
            return await _whole(request, limits.body_bytes)
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {limits.body_seconds:g} seconds", headers=CLOSE) from None


async def _whole(request: Request, most: int) -> bytes:
    stated = request.headers.get("content-length", "0")
    if not stated.isdecimal() or int(stated) > most:
        raise _too_large(most)
    body, more = bytearray(), True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise GoneError
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > most:
            raise _too_large(most)
    return bytes(body)


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body is larger than {most} bytes", headers=CLOSE)


def _value(body: bytes, kind: type[A], depth: int) -> A:
    fields = parsed(body, depth)
    if not isinstance(fields, dict):
        raise ApiError(400, "the body is a JSON object")
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise invalid(error, kind.refusals()) from None


def parsed(body: bytes, depth: int) -> Any:
    """Strict JSON: UTF-8, also where it is escaped, no key twice, no NaN or Infinity, at most `depth` levels.
    ApiError 400 otherwise."""
    try:
        value = json.loads(body.decode(), parse_constant=_not_json, object_pairs_hook=_unique)
        if b"\\u" in body:
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except RecursionError:
        raise _too_deep(depth) from None
    except ValueError as error:
        said = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise ApiError(400, f"the body is no JSON: {said[:200]}") from None
    _require_flat(value, depth)
    return value


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return fields


def _require_flat(value: Any, depth: int) -> None:
    """Level by level: what came through the parser may still be deeper than any field of ours."""
    level = [value]
    for _ in range(depth + 1):
        level = [
            child
            for each in level
            if isinstance(each, dict | list)
            for child in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return
    raise _too_deep(depth)


def _too_deep(depth: int) -> ApiError:
    return ApiError(400, f"the body is nested deeper than {depth} levels")
