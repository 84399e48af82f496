"""Loading and unloading a model of this server from inside a stub."""

from __future__ import annotations

import http.client
import json
import os
import time
from pathlib import Path
from typing import Any, Protocol

ADDRESS_VARIABLE = "MM2C_TRITON_HTTP"  # host:port of this server; `mm2c serve` sets it
LOAD_SECONDS = 60.0
SECRET_VARIABLE = "MM2C_TRITON_SECRET"  # what the server demands of whoever loads and unloads
SECRET_HEADER = "mm2c-control"
HEAD_START = 0.1  # seconds


class NoModelControl(RuntimeError):
    """This server was started without --model-control-mode=explicit."""


class ModelControl(Protocol):
    """Both raise when Triton refuses or cannot."""

    def load(self, model: str) -> None: ...
    def unload(self, model: str) -> None: ...


def model_control(pb: Any) -> ModelControl:
    """Over HTTP where the address is known, else through the backend, if this server allows it at all."""
    address = os.environ.get(ADDRESS_VARIABLE)
    if address:
        return OverHttp(address, os.environ.get(SECRET_VARIABLE))
    return ThroughBackend(pb) if _explicit(os.getppid()) else Absent()


def _explicit(server: int) -> bool:
    """Whether the server, this stub's parent, has explicit model control, by its command line."""
    try:
        arguments = Path(f"/proc/{server}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    words = b" ".join(arguments).replace(b"=", b" ").split()
    return any(words[n : n + 2] == [b"--model-control-mode", b"explicit"] for n in range(len(words)))


class Absent:
    """Asking a server without explicit control can hang the stub, so it is not asked."""

    def load(self, model: str) -> None:
        raise NoModelControl("start tritonserver with --model-control-mode=explicit --load-model=*")

    def unload(self, model: str) -> None:
        self.load(model)


class OverHttp:
    """Leaves the stub's other threads alone: they go on sending while Triton loads."""

    def __init__(self, address: str, secret: str | None = None) -> None:
        self._address = address
        self._headers = {SECRET_HEADER: secret} if secret else {}

    def load(self, model: str) -> None:
        self._post(f"/v2/repository/models/{model}/load")

    def unload(self, model: str) -> None:
        self._post(f"/v2/repository/models/{model}/unload")

    def _post(self, path: str) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=LOAD_SECONDS)
        try:
            connection.request("POST", path, b"{}", self._headers)
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise RuntimeError(json.loads(body).get("error", body.decode(errors="replace")))


class ThroughBackend:
    """Works without an address, but holds the stub's GIL until Triton is done, which may be seconds.

    Before that the sender gets a moment to tell the clients.
    """

    def __init__(self, pb: Any) -> None:
        self._pb = pb

    def load(self, model: str) -> None:
        time.sleep(HEAD_START)
        self._pb.load_model(model_name=model)

    def unload(self, model: str) -> None:
        time.sleep(HEAD_START)
        self._pb.unload_model(model_name=model)
