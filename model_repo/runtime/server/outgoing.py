"""Events on their way to one client: a queue that never blocks the engine, and deltas joined while they
wait."""

from __future__ import annotations

import threading
from collections import deque

from mm2c_runtime.answer import Event, merge_deltas

LIMIT = 100_000  # waiting messages at which a client that does not read is given up


class Outgoing:
    """``put`` from any thread, ``take`` from the writer. A delta joins the one before it of the same
    request as long as that has not been taken, so a slow client gets fewer, longer deltas and the order of
    events holds."""

    def __init__(self) -> None:
        self._messages: deque[Event] = deque()
        self._last_delta: dict[str, Event] = {}
        self._ready = threading.Condition()
        self._closed = False

    def put(self, message: Event) -> bool:
        """False where the queue is closed or the client has stopped reading."""
        with self._ready:
            if self._closed or len(self._messages) >= LIMIT:
                return False
            if message["type"] == "delta":
                before = self._last_delta.get(message["id"])
                if before is not None:
                    merge_deltas(before, message)
                    return True
                self._last_delta[message["id"]] = message
            elif "id" in message:
                self._last_delta.pop(message["id"], None)
            self._messages.append(message)
            self._ready.notify()
            return True

    def take(self) -> list[Event] | None:
        """Everything that waits, blocking until there is something; None once closed and empty."""
        with self._ready:
            while not self._messages and not self._closed:
                self._ready.wait()
            if not self._messages:
                return None
            taken = list(self._messages)
            self._messages.clear()
            self._last_delta.clear()
            return taken

    def close(self) -> None:
        """Nothing more is taken in; what waits can still be taken."""
        with self._ready:
            self._closed = True
            self._ready.notify()
