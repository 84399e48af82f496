"""Requests between a client's message and the engine: rendered and tokenised here, a few at a time.

A prompt of 100,000 tokens takes a good part of a second. On the thread that reads a client's messages it would
hold up every other request of that client and every cancel; in the engine thread it would hold up everybody.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from mm2c_runtime.answer import Event
from mm2c_runtime.engine import MAX_REQUESTS, Engine
from mm2c_runtime.errors import RequestError
from mm2c_runtime.requests import parse_request

WORKERS = 4  # the tokenizer works outside Python's lock
MAX_PENDING = MAX_REQUESTS  # that wait to be prepared, or are
MAX_PENDING_BYTES = 256 << 20  # of their messages together
log = logging.getLogger("mm2c.server")


@dataclass(slots=True, eq=False)
class _Pending:
    id: str
    fields: Mapping[str, Any]
    on_event: Callable[[Event], None]
    size: int  # bytes
    submitted: float  # on the monotonic clock
    cancelled: threading.Event = field(default_factory=threading.Event)
    begun: bool = False
    taken: bool = False  # ended here, or the engine has it


class Intake:
    """Shared by all connections. ``submit`` and ``cancel`` never block; everything about a request, refusals
    too, comes as its events. A cancel counts from the moment of ``submit`` on, and so does the timeout."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pending: dict[str, _Pending] = {}  # not yet with the engine
        self._bytes = 0  # of their messages
        self._lock = threading.Lock()
        self._workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="mm2c-intake")

    def submit(
        self,
        request_id: str,
        fields: Mapping[str, Any],
        on_event: Callable[[Event], None],
        *,
        size: int = 0,
    ) -> None:
        """The caller sees to it that no other request of this id is on its way or running. ``size``: bytes
        of the message that it came in."""
        pending = _Pending(request_id, fields, on_event, size, time.monotonic())
        with self._lock:
            self._pending[request_id] = pending
            self._bytes += size
            count, waiting = len(self._pending), self._bytes
        if count > MAX_PENDING or (waiting > MAX_PENDING_BYTES and count > 1):
            reason = f"{count - 1} requests of {waiting - size} bytes wait to be prepared; try later"
            self._refuse(pending, RequestError("RESOURCE_EXHAUSTED", reason))
            return
        try:
            self._workers.submit(self._prepare, pending)
        except RuntimeError:  # closed
            self._refuse(pending, RequestError("UNAVAILABLE", "the engine is shutting down"))

    def cancel(self, request_id: str) -> None:
        """Unknown ids are ignored."""
        with self._lock:
            pending = self._pending.get(request_id)
            if pending is not None:
                pending.cancelled.set()
                return
        self._engine.cancel(request_id)

    def close(self) -> None:
        """Nothing more is prepared; what has not reached the engine is refused with UNAVAILABLE."""
        self._workers.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            left = [pending for pending in self._pending.values() if not pending.begun]
        for pending in left:
            self._refuse(pending, RequestError("UNAVAILABLE", "the engine is shutting down"))

    def _prepare(self, pending: _Pending) -> None:
        with self._lock:
            if pending.taken:  # refused by ``close``
                return
            pending.begun = True
        if pending.cancelled.is_set():
            self._end_unprepared(pending)
            return
        try:
            request = parse_request(pending.fields)
            self._engine.submit(pending.id, request, pending.on_event, submitted=pending.submitted)
        except RequestError as error:
            self._refuse(pending, error)
        except Exception as error:  # a bug met by one request must not end the others
            log.exception("request %s failed before it started", pending.id)
            self._refuse(pending, RequestError("INTERNAL", f"{type(error).__name__}: {error}"))
        else:
            self._take(pending)
            if pending.cancelled.is_set():
                self._engine.cancel(pending.id)

    def _end_unprepared(self, pending: _Pending) -> None:
        if self._take(pending):
            ending = {"finish_reason": "cancelled", "num_input_tokens": 0, "num_output_tokens": 0, "seed": 0}
            pending.on_event({"type": "finish", "id": pending.id, **ending})

    def _refuse(self, pending: _Pending, error: RequestError) -> None:
        if self._take(pending):
            pending.on_event(
                {"type": "error", "id": pending.id, "code": error.code, "message": error.message}
            )

    def _take(self, pending: _Pending) -> bool:
        """From here on a cancel goes to the engine. False where the request was taken before."""
        with self._lock:
            if pending.taken:
                return False
            pending.taken = True
            self._bytes -= pending.size
            # The engine may have ended it already, and the client may have sent another of this id.
            if self._pending.get(pending.id) is pending:
                del self._pending[pending.id]
            return True
