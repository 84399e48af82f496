"""A client of the fake engine with the surface of mm2c_runtime.server.client.EngineClient: JSON lines on a socket."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any


class EngineClient:
    def __init__(
        self, path: str, on_event: Callable[[dict[str, Any]], None], on_disconnect: Callable[[], None]
    ) -> None:
        self._path, self._on_event, self._on_disconnect = path, on_event, on_disconnect
        self._lock = threading.Lock()

    def connect(self, timeout: float) -> None:
        end = time.monotonic() + timeout
        while True:
            self._socket = socket.socket(socket.AF_UNIX)
            try:
                self._socket.connect(self._path)
                break
            except OSError:
                self._socket.close()
                if time.monotonic() > end:
                    raise
                time.sleep(0.02)
        threading.Thread(target=self._read, daemon=True).start()

    def submit(self, id: str, fields: dict[str, Any]) -> None:
        self._write({"op": "submit", "id": id, "fields": fields})

    def cancel(self, id: str) -> None:
        self._write({"op": "cancel", "id": id})

    def close(self) -> None:
        self._on_disconnect = lambda: None
        self._socket.close()

    def _write(self, message: dict[str, Any]) -> None:
        with self._lock:
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def _read(self) -> None:
        try:
            for line in self._socket.makefile("rb"):
                self._on_event(json.loads(line))
        except OSError:
            pass
        self._on_disconnect()
