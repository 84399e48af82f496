"""The stub's end of the engine socket: one client at a time, replaced when the engine comes back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mm2c_runtime.errors import RequestError
from mm2c_runtime.server.client import EngineClient

RETRY_SECONDS = 0.1


class EngineLink:
    """``on_event`` and ``on_lost`` are called from the client's reader thread and must not block."""

    def __init__(
        self, socket: Path, on_event: Callable[[dict[str, Any]], None], on_lost: Callable[[], None]
    ) -> None:
        self._socket = socket
        self._on_event = on_event
        self._on_lost = on_lost
        self._client: EngineClient | None = None
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def connect(self, timeout: float) -> None:
        """Raises OSError when no engine answers within ``timeout`` seconds."""
        client = EngineClient(str(self._socket), self._on_event, self._lost)
        client.connect(timeout)
        with self._lock:
            self._client = client

    def keep_connected(self) -> None:
        """Connect, and connect again after every loss, from a thread of its own."""
        threading.Thread(target=self._reconnect, name="mm2c-connect", daemon=True).start()

    @property
    def connected(self) -> bool:
        return self._client is not None

    def submit(self, id: str, fields: dict[str, Any]) -> None:
        """Raises RequestError(UNAVAILABLE) while there is no engine."""
        self._current().submit(id, fields)

    def cancel(self, id: str) -> None:
        client = self._client
        if client is not None:
            client.cancel(id)

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _current(self) -> EngineClient:
        client = self._client
        if client is None:
            raise RequestError("UNAVAILABLE", "the engine is not running; it is being restarted, try again")
        return client

    def _lost(self, ids: list[str]) -> None:
        with self._lock:
            self._client = None
        if not self._closed.is_set():
            self._on_lost()

    def _reconnect(self) -> None:
        while not self._closed.wait(RETRY_SECONDS):
            if self._client is None:
                try:
                    self.connect(1.0)
                except OSError:
                    continue
