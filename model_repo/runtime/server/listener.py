"""The engine's Unix socket: binds it, accepts clients, removes it."""

from __future__ import annotations

import itertools
import logging
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from mm2c_runtime.engine import Engine
from mm2c_runtime.errors import BundleError
from mm2c_runtime.server.connection import Connection
from mm2c_runtime.server.intake import Intake
from mm2c_runtime.server.protocol import MAX_PATH, VERSION, Message, remove_stale

log = logging.getLogger("mm2c.server")


class Listener:
    """Only this user may connect. Raises BundleError where the path is too long or another engine serves
    it."""

    def __init__(
        self, engine: Engine, path: Path, model: Message, *, on_shutdown: Callable[[], None]
    ) -> None:
        self._engine, self._path, self._on_shutdown = engine, path, on_shutdown
        self._hello: Message = {"type": "hello", "version": VERSION, "pid": os.getpid(), **model}
        self._connections: set[Connection] = set()
        self._lock = threading.Lock()
        self._socket = _bind(path)
        self._intake = Intake(engine)
        self._thread = threading.Thread(target=self._accept, name="mm2c-accept", daemon=True)
        self._thread.start()

    def stop_accepting(self) -> None:
        """New clients are turned away; the present ones stay. The socket file is gone afterwards."""
        self._path.unlink(missing_ok=True)
        try:
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes accept()
        except OSError:
            log.debug("the listening socket was closed already")
        self._socket.close()

    def close(self) -> None:
        """Sends every client what is queued for it and ends."""
        self.stop_accepting()
        self._intake.close()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.finish()

    def _accept(self) -> None:
        for number in itertools.count(1):
            try:
                stream, _ = self._socket.accept()
            except OSError:
                return
            connection = Connection(
                stream,
                number,
                self._engine,
                self._intake,
                self._hello,
                self._on_shutdown,
                self._forget,
            )
            with self._lock:
                self._connections.add(connection)
            connection.start()

    def _forget(self, connection: Connection) -> None:
        with self._lock:
            self._connections.discard(connection)


def _bind(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > MAX_PATH:
        raise BundleError(
            f"the socket's path is longer than {MAX_PATH} bytes",
            where=str(path),
            remedy="use a shorter folder",
        )
    if not remove_stale(path):
        raise BundleError(
            "another engine serves this socket", where=str(path), remedy="stop it, or use another path"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    listening = socket.socket(socket.AF_UNIX)
    previous = os.umask(0o177)
    try:
        listening.bind(str(path))
    except OSError as error:
        listening.close()
        raise BundleError(
            f"cannot listen: {error.strerror}", where=str(path), remedy="use another path"
        ) from None
    finally:
        os.umask(previous)
    listening.listen(64)
    return listening
