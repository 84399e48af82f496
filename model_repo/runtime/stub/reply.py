"""The way back to one request's client, safe to use from the sender and the cancel poller at once."""

from __future__ import annotations

import threading
from typing import Any


class Reply:
    """Triton's response sender, with the one rule that it does not enforce itself.

    The final response frees the request's response factory inside tritonserver. Asking about a cancellation
    while that happens, or after it, reads freed memory there and ends the whole server with SIGSEGV (in
    TRITONBACKEND_ResponseFactoryIsCancelled). So question and final response exclude each other, and once
    the request has ended the answer is no, without asking.
    """

    def __init__(self, sender: Any) -> None:
        self._sender = sender
        self._lock = threading.Lock()
        self._ended = False

    def send(self, response: Any) -> None:
        """A response with more to come."""
        self._sender.send(response, flags=0)

    def send_last(self, response: Any, final: int) -> None:
        """The response that ends the request; ``final``: Triton's flag for it. Raises what Triton raises."""
        with self._lock:
            self._ended = True
            self._sender.send(response, flags=final)

    def is_cancelled(self) -> bool:
        """Whether the client has gone. Waits for an answer of Triton, up to 170 µs."""
        with self._lock:
            if self._ended:
                return False
            try:
                return bool(self._sender.is_cancelled())
            except Exception:  # Triton no longer knows the request
                return False
