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

RETRY_SECONDS = 0.1
log = logging.getLogger("mm2c.server")


class Listener:
    """Only this user may connect. Raises BundleError where the path is too long, another engine serves it, or
    something other than a socket lies there."""

    def __init__(
        self, engine: Engine, path: Path, model: Message, *, on_shutdown: Callable[[], None]
    ) -> None:
        self._engine, self._path, self._on_shutdown = engine, path, on_shutdown
        self._hello: Message = {"type": "hello", "version": VERSION, "pid": os.getpid(), **model}
        self._connections: set[Connection] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._socket = _bind(path)
        self._own = _inode(path)
        self._intake = Intake(engine)
        self._thread = threading.Thread(target=self._accept, name="mm2c-accept", daemon=True)
        self._thread.start()

    def stop_accepting(self) -> None:
        """New clients are turned away; the present ones stay. The socket file is gone afterwards."""
        if self._closed.is_set():
            return
        self._closed.set()
        if _inode(self._path) == self._own:  # else another engine has bound the path since
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
            except OSError as error:
                if self._closed.is_set():
                    return
                log.warning("a client could not be accepted: %s", error)  # no descriptor left, for one
                self._closed.wait(RETRY_SECONDS)
                continue
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
            try:
                connection.start()
            except RuntimeError as error:  # no thread left
                log.warning("client %d was turned away: %s", number, error)
                self._forget(connection)

    def _forget(self, connection: Connection) -> None:
        with self._lock:
            self._connections.discard(connection)


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


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
