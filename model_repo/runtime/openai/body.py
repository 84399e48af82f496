"""A request's JSON, read into bounded memory."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect, Request

from mm2c_runtime.openai.errors import ApiError, invalid

MAX_BODY = 64 << 20  # bytes
LARGE = 1 << 20  # bytes
MAX_DISCARDED = (
    4 * MAX_BODY
)  # read and dropped, so that the client hears the refusal: it listens when it has sent


async def read_object(request: Request) -> dict[str, Any]:
    """The JSON object of a request's body, whatever content type it claims.

    Raises ApiError 400 where it is none, 413 where it is larger than MAX_BODY.
    """
    body = await _read(request)
    # What is large is parsed beside the loop, which other requests' answers are waiting for.
    return await asyncio.to_thread(_object, body) if len(body) > LARGE else _object(body)


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body.decode("utf-8-sig"), parse_constant=_not_json, parse_float=_finite)
    except UnicodeDecodeError:
        raise invalid("the body is not valid UTF-8", None) from None
    except ValueError as error:
        raise invalid(f"the body is not JSON: {error}", None) from None
    except RecursionError:
        raise invalid("the body is nested too deeply", None) from None
    if not isinstance(value, dict):
        raise invalid("the body must be a JSON object", None)
    return value


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


async def _read(request: Request) -> bytes:
    announced = request.headers.get("content-length", "")
    size = int(announced) if announced.isdigit() else 0
    if size > MAX_BODY and "100-continue" in request.headers.get("expect", "").lower():
        raise _too_large()  # the client waits for a word before it sends
    if size > MAX_DISCARDED:
        raise _too_large()
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > MAX_DISCARDED:
                break
            if size <= MAX_BODY:
                chunks.append(chunk)
            else:
                chunks.clear()
    except ClientDisconnect:
        raise ApiError(499, "the client went away while it sent") from None
    if size > MAX_BODY:
        raise _too_large()
    return b"".join(chunks)


def _too_large() -> ApiError:
    return ApiError(
        413,
        f"the body is larger than {MAX_BODY >> 20} MiB",
        code="request_too_large",
        headers={"connection": "close"},
    )
