"""The engine process as seen from another process (the Triton models, ``mm2c``)."""

from __future__ import annotations

import itertools
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from mm2c_runtime.errors import RequestError
from mm2c_runtime.server.protocol import VERSION, Message, Reader, check_hello, encode

_RETRY_SECONDS = 0.02


class EngineClient:
    """One connection. ``on_event(event)`` and ``on_disconnect(ids)`` are called from the reader thread and
    must not block; ``ids`` are the requests that were in flight, each of which gets no further event.
    ``on_disconnect`` is called once, when the engine goes away, and not after ``close``. Safe to use from
    several threads.
    """

    def __init__(
        self,
        socket_path: str,
        on_event: Callable[[Message], None],
        on_disconnect: Callable[[list[str]], None] = lambda ids: None,
    ) -> None:
        self._path, self._on_event, self._on_disconnect = socket_path, on_event, on_disconnect
        self._stream: socket.socket | None = None
        self._sending = threading.Lock()
        self._state = threading.Lock()
        self._live: set[str] = set()
        self._answers: dict[int, queue.SimpleQueue[Message | None]] = {}
        self._tags = itertools.count()
        self._connected = self._closed = False
        self.hello: Message = {}

    def connect(self, timeout: float) -> Message:
        """Connects and greets within ``timeout`` seconds, waiting for the socket to appear; returns the
        engine's hello (version, pid, model, limits). Raises OSError (TimeoutError where nothing answered)."""
        end = time.monotonic() + timeout
        while True:
            stream = socket.socket(socket.AF_UNIX)
            try:
                stream.settimeout(max(end - time.monotonic(), 0.001))
                stream.connect(self._path)
                stream.sendall(encode({"type": "hello", "version": VERSION}))
                reader = Reader(stream)
                self.hello = check_hello(reader.read())
                break
            except (FileNotFoundError, ConnectionRefusedError):
                stream.close()
                if time.monotonic() >= end:
                    raise TimeoutError(f"no engine answered on {self._path} within {timeout:g} s") from None
                time.sleep(_RETRY_SECONDS)
            except BaseException:
                stream.close()
                raise
        stream.settimeout(None)
        self._stream, self._connected = stream, True
        threading.Thread(target=self._read, args=(reader,), name="mm2c-client", daemon=True).start()
        return self.hello

    def submit(self, id: str, fields: dict[str, Any]) -> None:
        """Starts a request; everything about it, refusals too, comes as events. Raises RequestError
        UNAVAILABLE where there is no connection (no event follows), INVALID_ARGUMENT where it is too
        large."""
        message = {"type": "submit", "id": id, "fields": fields}
        try:
            frame = encode(message)
        except (TypeError, ValueError, ConnectionError, RecursionError) as error:
            raise RequestError("INVALID_ARGUMENT", f"the request cannot be sent: {error}") from None
        with self._state:
            if not self._connected:
                raise RequestError("UNAVAILABLE", "there is no connection to the engine")
            if id in self._live:
                raise RequestError("INVALID_ARGUMENT", f"a request with id {id} is already running")
            self._live.add(id)
        self._send(frame)  # where this fails the reader reports the id

    def cancel(self, id: str) -> None:
        """Asks for the end of a request, which comes as a finish event; unknown ids are ignored."""
        self._send(encode({"type": "cancel", "id": id}))

    @property
    def in_flight(self) -> int:
        """Requests that have not ended."""
        return len(self._live)

    def runs(self, id: str) -> bool:
        return id in self._live

    def stats(self, timeout: float = 5.0) -> dict[str, Any]:
        """The engine's counters. Raises RequestError UNAVAILABLE."""
        return dict(self._ask("stats", timeout)["stats"])

    def ping(self, timeout: float = 5.0) -> float:
        """Seconds there and back. Raises RequestError UNAVAILABLE."""
        began = time.perf_counter()
        self._ask("ping", timeout)
        return time.perf_counter() - began

    def shutdown(self) -> None:
        """Asks the engine process to finish what is in flight and end."""
        self._send(encode({"type": "shutdown"}))

    def close(self) -> None:
        """Ends the connection; the engine cancels what this client had in flight."""
        with self._state:
            self._closed, self._connected = True, False
        self._shut()

    def _ask(self, kind: str, timeout: float) -> Message:
        answer: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        with self._state:
            if not self._connected:
                raise RequestError("UNAVAILABLE", "there is no connection to the engine")
            tag = next(self._tags)
            self._answers[tag] = answer
        self._send(encode({"type": kind, "tag": tag}))
        try:
            message = answer.get(timeout=timeout)
        except queue.Empty:
            message = None
        finally:
            self._answers.pop(tag, None)
        if message is None:
            raise RequestError("UNAVAILABLE", f"the engine did not answer a {kind} message")
        return message

    def _send(self, frame: bytes) -> None:
        stream = self._stream
        if stream is None:
            return
        try:
            with self._sending:
                stream.sendall(frame)
        except OSError:
            self._shut()  # the reader notices and reports what was in flight

    def _read(self, reader: Reader) -> None:
        try:
            while (message := reader.read()) is not None:
                self._deliver(message)
        except OSError:
            pass  # a lost connection and a closed one are reported alike, below
        finally:
            self._lost()

    def _deliver(self, message: Message) -> None:
        if "tag" in message:
            answer = self._answers.get(message["tag"])
            if answer is not None:
                answer.put(message)
            return
        if message["type"] in ("finish", "error"):
            with self._state:
                self._live.discard(message["id"])
        self._on_event(message)

    def _lost(self) -> None:
        with self._state:
            closed, self._connected = self._closed, False
            ids, self._live = sorted(self._live), set()
        self._shut()
        for answer in list(self._answers.values()):
            answer.put(None)
        if not closed:
            self._on_disconnect(ids)

    def _shut(self) -> None:
        stream = self._stream
        if stream is not None:
            try:
                stream.shutdown(socket.SHUT_RDWR)
            except OSError:
                return
