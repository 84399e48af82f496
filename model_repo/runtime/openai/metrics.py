"""Triton's metrics, passed on."""

from __future__ import annotations

import asyncio
import http.client
from urllib.parse import urlsplit

from starlette.responses import Response

from mm2c_runtime.openai.errors import ApiError

TIMEOUT = 5.0  # seconds


async def metrics_reply(url: str) -> Response:
    """Raises ApiError 503 where nobody answers at ``url``."""
    try:
        status, kind, body = await asyncio.to_thread(_fetch, url)
    except (OSError, http.client.HTTPException) as error:
        raise ApiError(
            503,
            f"the server's metrics cannot be read: {error}",
            type="server_error",
            code="service_unavailable",
        ) from None
    return Response(body, status, media_type=kind)


def _fetch(url: str) -> tuple[int, str, bytes]:
    """Past any proxy of the environment."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT)
    try:
        connection.request("GET", parts.path or "/metrics")
        answer = connection.getresponse()
        return answer.status, answer.getheader("Content-Type", "text/plain; charset=utf-8"), answer.read()
    finally:
        connection.close()
