"""API keys: who may use ``/v1``. Health and metrics are open, as they are on Triton's own ports."""

from __future__ import annotations

import hmac

from starlette.types import ASGIApp, Receive, Scope, Send

from mm2c_runtime.openai.errors import ApiError
from mm2c_runtime.openai.replies import error_reply


class KeyCheck:
    """ASGI middleware: refuses requests below ``/v1`` that bear none of ``keys``, before their body is read."""

    def __init__(self, app: ASGIApp, keys: tuple[bytes, ...]) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v1"):
            failure = self._failure(dict(scope["headers"]).get(b"authorization"))
            if failure is not None:
                await error_reply(failure)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _failure(self, authorization: bytes | None) -> ApiError | None:
        scheme, _, given = (authorization or b"").partition(b" ")
        if scheme.lower() == b"bearer":
            known = 0
            for key in self._keys:  # all of them, and each in constant time: how long it takes tells nothing
                known += hmac.compare_digest(given.strip(), key)
            if known:
                return None
            return _refused("incorrect API key provided", "invalid_api_key")
        return _refused("an API key is needed: send the header Authorization: Bearer KEY", "missing_api_key")


def _refused(message: str, code: str) -> ApiError:
    return ApiError(
        401, message, type="authentication_error", code=code, headers={"www-authenticate": "Bearer"}
    )
