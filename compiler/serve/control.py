"""Triton's health and model control over HTTP, with the standard library only."""

from __future__ import annotations

import http.client
import json
from typing import Any

from mm2c_runtime.stub.model_control import SECRET_HEADER


class Control:
    """Every call opens its own connection. Raises OSError or HTTPException when nobody answers.

    ``secret`` opens what Triton was told to keep from clients: the index, load and unload.
    """

    def __init__(self, host: str, port: int, secret: str) -> None:
        self._headers = {SECRET_HEADER: secret}
        self._host = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host
        self._port = port

    @property
    def address(self) -> str:
        return f"{self._host}:{self._port}"

    def ready(self) -> bool:
        """Whether the server answers and all its models are ready."""
        try:
            return self._call("GET", "/v2/health/ready", 2.0)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def states(self) -> dict[str, str]:
        """Model name to state (READY, LOADING, UNLOADING, UNAVAILABLE)."""
        _, body = self._call("POST", "/v2/repository/index", 5.0)
        return {model["name"]: model.get("state", "UNAVAILABLE") for model in json.loads(body)}

    def unload(self, model: str) -> bool:
        return self._call("POST", f"/v2/repository/models/{model}/unload", 30.0)[0] == 200

    def load(self, model: str, timeout: float = 60.0) -> bool:
        return self._call("POST", f"/v2/repository/models/{model}/load", timeout)[0] == 200

    def _call(self, method: str, path: str, timeout: float) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout)
        try:
            connection.request(method, path, None if method == "GET" else b"{}", self._headers)
            answer: Any = connection.getresponse()
            return int(answer.status), bytes(answer.read())
        finally:
            connection.close()
