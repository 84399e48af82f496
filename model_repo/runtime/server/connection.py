"""One client of the engine process: a reader thread that carries out its messages and a writer thread."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from typing import Any

from mm2c_runtime.answer import Event
from mm2c_runtime.engine import Engine
from mm2c_runtime.errors import RequestError
from mm2c_runtime.server.intake import Intake
from mm2c_runtime.server.outgoing import Outgoing
from mm2c_runtime.server.protocol import Message, Reader, check_hello, encode

log = logging.getLogger("mm2c.server")
_FLUSH_SECONDS = 5.0


class Connection:
    """Requests of a client that goes away are cancelled. ``number`` keeps the ids of clients apart."""

    def __init__(
        self,
        stream: socket.socket,
        number: int,
        engine: Engine,
        intake: Intake,
        hello: Message,
        on_shutdown: Callable[[], None],
        on_closed: Callable[[Connection], None],
    ) -> None:
        self._stream, self._engine, self._intake, self._number = stream, engine, intake, number
        self._hello, self._on_shutdown, self._on_closed = hello, on_shutdown, on_closed
        self._outgoing = Outgoing()
        self._lock = threading.Lock()
        self._live: set[str] = set()  # the client's ids that have not ended
        self._reader = threading.Thread(target=self._read, name=f"mm2c-read-{number}", daemon=True)
        self._writer = threading.Thread(target=self._write, name=f"mm2c-write-{number}", daemon=True)

    def start(self) -> None:
        """Raises RuntimeError, and ends the connection, where there is no thread for it."""
        try:
            self._writer.start()
            self._reader.start()
        except RuntimeError:
            self._outgoing.close()
            self._shut()
            raise

    def finish(self) -> None:
        """Sends what is queued, then closes."""
        self._outgoing.close()
        self._writer.join(_FLUSH_SECONDS)
        self._shut()

    def _read(self) -> None:
        reader = Reader(self._stream)
        try:
            check_hello(reader.read())
            self._outgoing.put(self._hello)
            while (message := reader.read()) is not None:
                self._carry_out(message, reader.size)
        except OSError as error:
            log.info("client %d: %s", self._number, error)
        finally:
            self._abandon()
            self._outgoing.close()
            self._shut()
            self._on_closed(self)

    def _carry_out(self, message: Message, size: int) -> None:
        kind = message["type"]
        if kind == "submit":
            self._submit(str(message.get("id")), message.get("fields"), size)
        elif kind == "cancel":
            self._intake.cancel(self._inner(str(message.get("id"))))
        elif kind == "stats":
            self._outgoing.put({"type": "stats", "tag": message.get("tag"), "stats": self._engine.stats()})
        elif kind == "ping":
            self._outgoing.put({"type": "pong", "tag": message.get("tag")})
        elif kind == "shutdown":
            self._on_shutdown()
        else:
            log.warning("client %d: unknown message type %r", self._number, kind)

    def _submit(self, request_id: str, fields: Any, size: int) -> None:
        with self._lock:
            known = request_id in self._live
            if isinstance(fields, dict):
                self._live.add(request_id)
        if known:
            self._refuse(request_id, f"a request with id {request_id} is already running")
        elif not isinstance(fields, dict):
            self._refuse(request_id, "fields: an object is expected")
        else:
            self._intake.submit(self._inner(request_id), fields, self._listener(request_id), size=size)

    def _refuse(self, request_id: str, reason: str) -> None:
        error = RequestError("INVALID_ARGUMENT", reason)
        self._outgoing.put({"type": "error", "id": request_id, "code": error.code, "message": error.message})

    def _listener(self, request_id: str) -> Callable[[Event], None]:
        def on_event(event: Event) -> None:
            if event["type"] in ("finish", "error"):
                with self._lock:
                    self._live.discard(request_id)
            if not self._outgoing.put({**event, "id": request_id}):
                self._shut()  # the reader notices and cancels what is left

        return on_event

    def _inner(self, request_id: str) -> str:
        return f"{self._number}/{request_id}"

    def _abandon(self) -> None:
        with self._lock:
            live = list(self._live)
        for request_id in live:
            self._intake.cancel(self._inner(request_id))

    def _write(self) -> None:
        try:
            while (messages := self._outgoing.take()) is not None:
                self._stream.sendall(b"".join(encode(message) for message in messages))
        except OSError as error:
            log.info("client %d: %s", self._number, error)
            self._shut()

    def _shut(self) -> None:
        try:
            self._stream.shutdown(socket.SHUT_RDWR)
        except OSError:
            return
