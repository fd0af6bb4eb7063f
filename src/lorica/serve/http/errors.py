"""Errors in OpenAI's shape, whatever was raised.

{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}
"""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from lorica.errors import (
    AdapterError,
    LoricaError,
    QueueFullError,
    RequestError,
    RunError,
    UnknownAdapterError,
    did_you_mean,
)

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
"""By status; the other 4xx are `invalid_request_error`, 5xx are `server_error`."""
CODES = {
    400: "invalid_request",
    401: "invalid_api_key",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    409: "conflict",
    413: "request_too_large",
    415: "unsupported_media_type",
    421: "misdirected_request",
    429: "rate_limit_exceeded",
    500: "internal_error",
    503: "unavailable",
    504: "deadline_exceeded",
}
PROBLEMS = 8
"""Problems of one request that are told at once."""
AGAIN = {"retry-after": "1"}
CLOSE = {"connection": "close"}


class ApiError(Exception):
    """What is answered instead of a result.  param: the field of the request that is meant."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param
        self.code, self.headers = code or CODES.get(status), dict(headers or {})

    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, self.headers)


class GoneError(Exception):
    """The client went away; nobody reads an answer."""


def api_error(error: BaseException) -> ApiError:
    """The answer to anything that was raised.  What is not known says nothing of itself."""
    match error:
        case ApiError():
            return error
        case UnknownAdapterError():
            return ApiError(404, str(error), param="model", code="model_not_found")
        case QueueFullError():
            return ApiError(429, str(error) or "the queue is full; ask again in a moment", headers=AGAIN)
        case RequestError():
            return ApiError(400, str(error))
        case RunError():
            return ApiError(503, "the server is stopping", headers=AGAIN)
        case AdapterError():
            return ApiError(400, str(error), code="adapter_refused")
        case LoricaError():
            return ApiError(500, "the work failed; the log of the server says where")
        case HTTPException():
            return ApiError(error.status_code, str(error.detail), headers=error.headers)
        case _:
            return ApiError(500, "an unexpected error; the log of the server says where")


def invalid(error: ValidationError, known: Mapping[str, str]) -> ApiError:
    """Every field that is wrong.  `known` are fields that are refused with a reason of their own."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    told = [_told(each, known) for each in found[:PROBLEMS]]
    more = f"; and {len(found) - PROBLEMS} more" if len(found) > PROBLEMS else ""
    return ApiError(400, "; ".join(told) + more, param=_place(found[0]))


def _told(problem: Any, known: Mapping[str, str]) -> str:
    place, said = _place(problem), problem["msg"].removeprefix("Value error, ")
    if problem["type"] != "extra_forbidden":
        return f"{place}: {said}"
    name = str(problem["loc"][-1])[:64]
    return f"{place}: {known.get(name) or 'no such field' + did_you_mean(name, known)}"


def _place(problem: Any) -> str:
    """`messages[0].content`"""
    text = ""
    for part in problem["loc"]:
        text += f"[{part}]" if isinstance(part, int) else f".{str(part)[:64]}"
    return text.removeprefix(".") or "body"
