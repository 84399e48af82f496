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
    """``on_event``, ``on_failed`` and ``on_down`` are called from the client's reader thread and must not
    block.

    ``on_failed(ids)``: the requests that were in flight on a connection that broke. ``on_down()``: it was
    the present connection, so there is no engine now. The late end of an earlier connection fails that
    connection's requests alone, and is no reason to start a new engine.
    """

    def __init__(
        self,
        socket: Path,
        on_event: Callable[[dict[str, Any]], None],
        on_failed: Callable[[list[str]], None],
        on_down: Callable[[], None],
    ) -> None:
        self._socket = socket
        self._on_event, self._on_failed, self._on_down = on_event, on_failed, on_down
        self._client: EngineClient | None = None
        self._lock = threading.Lock()  # guards _client, and the order of connecting, losing and closing
        self._closed = threading.Event()

    def connect(self, timeout: float) -> None:
        """Raises OSError when no engine answers within ``timeout`` seconds, or it goes away meanwhile."""
        lost = threading.Event()

        def on_disconnect(ids: list[str]) -> None:
            self._lost(client, lost, ids)

        client = EngineClient(str(self._socket), self._on_event, on_disconnect)
        client.connect(timeout)
        with self._lock:
            if lost.is_set():  # its loss was told before it became the present one
                raise ConnectionError("the engine went away while it was being connected")
            if not self._closed.is_set():
                self._client = client
                return
        client.close()

    def keep_connected(self) -> None:
        """Connect, and connect again after every loss, from a thread of its own."""
        threading.Thread(target=self._reconnect, name="mm2c-connect", daemon=True).start()

    @property
    def connected(self) -> bool:
        return self._client is not None

    @property
    def in_flight(self) -> int:
        """Requests that the present engine has of this link."""
        client = self._client
        return 0 if client is None else client.in_flight

    def runs(self, id: str) -> bool:
        client = self._client
        return client is not None and client.runs(id)

    def submit(self, id: str, fields: dict[str, Any]) -> None:
        """Raises RequestError(UNAVAILABLE) while there is no engine."""
        client = self._client
        if client is None:
            raise RequestError("UNAVAILABLE", "the engine is not running; it is being restarted, try again")
        client.submit(id, fields)

    def cancel(self, id: str) -> None:
        """Ids of an earlier connection are unknown to the present engine, which ignores them."""
        client = self._client
        if client is not None:
            client.cancel(id)

    def close(self) -> None:
        with self._lock:
            self._closed.set()
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _lost(self, client: EngineClient, lost: threading.Event, ids: list[str]) -> None:
        with self._lock:
            lost.set()
            present = self._client is client
            if present:
                self._client = None
        self._on_failed(ids)
        if present and not self._closed.is_set():
            self._on_down()

    def _reconnect(self) -> None:
        while not self._closed.wait(RETRY_SECONDS):
            if self._client is None:
                try:
                    self.connect(1.0)
                except OSError:
                    continue
