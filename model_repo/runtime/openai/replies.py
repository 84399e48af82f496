"""HTTP replies with JSON bodies."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from mm2c_runtime.openai.answer import json_bytes
from mm2c_runtime.openai.errors import ApiError


def json_reply(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json_bytes(value), status, headers, media_type="application/json")


def error_reply(error: ApiError) -> Response:
    return json_reply(error.body, error.status, error.headers)
