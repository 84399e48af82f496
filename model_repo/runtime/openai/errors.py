"""Errors in OpenAI's shape, and what an engine's refusal becomes on the way there."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, NamedTuple

from mm2c_runtime.errors import RequestError


class _Kind(NamedTuple):
    status: int
    type: str
    code: str | None


# What a code of the engine is over HTTP. CANCELLED reaches a client only where its own time limit ran out, or
# the server gave the request up; one that went away hears nothing.
_KINDS = {
    "INVALID_ARGUMENT": _Kind(400, "invalid_request_error", None),
    "RESOURCE_EXHAUSTED": _Kind(429, "rate_limit_error", "rate_limit_exceeded"),
    "UNAVAILABLE": _Kind(503, "server_error", "service_unavailable"),
    "CANCELLED": _Kind(504, "server_error", "timeout"),
    "INTERNAL": _Kind(500, "server_error", "internal_error"),
}
_RETRY_SECONDS = {429: "1", 503: "2"}
_ENGINE_NAMES = {"text_input": "prompt", "exclude_input_in_output": "echo", "sampling_parameters": ""}
_PLACE = re.compile(r"([A-Za-z_]\w*)((?:\[\d+\]|\.\w+)*)")
_TOO_LONG = re.compile(r"\b(context|KV budget)\b.*\btokens?\b|\btokens?\b.*\b(context|KV budget)\b", re.S)
INTERNAL = "the server failed to answer this request; its log says why"


class ApiError(Exception):
    """An answer that is an error: HTTP ``status`` and the members of OpenAI's ``error`` object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.type, self.param, self.code = status, message, type, param, code
        retry = _RETRY_SECONDS.get(status)
        self.headers = {**({"retry-after": retry} if retry else {}), **(headers or {})}

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def invalid(message: str, param: str | None, code: str | None = None) -> ApiError:
    """A request that cannot be served as it is: 400."""
    return ApiError(400, message, param=param, code=code)


def of_engine(error: RequestError, fields: Collection[str]) -> ApiError:
    """The engine's refusal; ``fields``: names that the request has, among which ``param`` is looked for.

    What went wrong inside (INTERNAL) is not told: it belongs into the log.
    """
    kind = _KINDS[error.code]
    if error.code == "INTERNAL":
        return ApiError(kind.status, INTERNAL, type=kind.type, code=kind.code)
    message, param = error.message, None
    if error.code == "INVALID_ARGUMENT":
        message, param = _placed(message, fields)
    code = kind.code
    if error.code == "INVALID_ARGUMENT" and _TOO_LONG.search(message):
        code = "context_length_exceeded"
    return ApiError(kind.status, message, type=kind.type, param=param, code=code)


def _placed(message: str, fields: Collection[str]) -> tuple[str, str | None]:
    """The message under the client's names, and the place in its request that it begins with."""
    found = _PLACE.match(message)
    if found is None:
        return message, None
    name = found[1]
    if name in _ENGINE_NAMES:
        name = _ENGINE_NAMES[name]
        message = name + message[found.end(1) :] if name else message[found.end() :].lstrip(": ")
        return _placed(message, fields) if not name else (message, name if name in fields else None)
    return message, found[0] if name in fields else None
