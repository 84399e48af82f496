"""An engine whose events the test says itself, and the wait for what the stub's threads make of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class ScriptedClient:
    """Stands for EngineClient; the test speaks for the engine through ``say`` and ``die``."""

    current: ScriptedClient

    def __init__(
        self, path: str, on_event: Callable[[Any], None], on_disconnect: Callable[[list[str]], None]
    ) -> None:
        self.say, self._on_disconnect = on_event, on_disconnect
        self.submitted: list[str] = []
        self.cancelled: list[str] = []
        self.closed = False
        ScriptedClient.current = self

    def connect(self, timeout: float) -> None:
        return

    def submit(self, id: str, fields: dict[str, Any]) -> None:
        self.submitted.append(id)

    def cancel(self, id: str) -> None:
        self.cancelled.append(id)

    def close(self) -> None:
        self.closed = True

    def die(self) -> None:
        self._on_disconnect(list(self.submitted))


def until(condition: Callable[[], Any], seconds: float = 5) -> None:
    """Wait for the condition; AssertionError when it does not come true within ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"it did not come true within {seconds} seconds"
        time.sleep(0.002)
