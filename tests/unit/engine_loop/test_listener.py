"""The engine's socket file and its accept loop, whatever else happens on the machine."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from toy_engine import ToyExecutor, toy_engine

from mm2c_runtime.engine import Engine
from mm2c_runtime.errors import BundleError
from mm2c_runtime.server import connection as connection_module
from mm2c_runtime.server import listener as listener_module
from mm2c_runtime.server.client import EngineClient
from mm2c_runtime.server.launcher import EngineProcess
from mm2c_runtime.server.listener import Listener
from mm2c_runtime.server.protocol import remove_stale


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = toy_engine(ToyExecutor())
    yield made
    made.close()


def answers(path: Path) -> bool:
    client = EngineClient(str(path), lambda event: None)
    client.connect(5)
    client.ping(5)
    client.close()
    return True


def listen(engine: Engine, path: Path) -> Listener:
    return Listener(engine, path, {}, on_shutdown=lambda: None)


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_no_socket_is_left_alone(engine: Engine, tmp_path: Path, kind: str) -> None:
    path, precious = tmp_path / "s", tmp_path / "precious"
    precious.write_text("data")
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(precious)
    else:
        path.write_text("data")
    with pytest.raises(BundleError, match="a file or a folder, not a socket"):
        listen(engine, path)
    process = EngineProcess("", str(path), command=["true"])
    process.start()
    process.wait(10)
    process.stop()
    assert path.is_symlink() if kind == "link" else path.exists()
    assert precious.read_text() == "data"


def test_a_stale_socket_is_removed_and_a_served_one_is_not(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "s"
    assert remove_stale(path)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
        stale.listen()
        assert not remove_stale(path)
        with pytest.raises(BundleError, match="another engine serves this socket"):
            listen(engine, path)
    assert remove_stale(path)
    assert not path.exists()


def test_a_draining_engine_leaves_its_successors_socket(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "s"
    old = listen(engine, path)
    old.stop_accepting()
    new = listen(engine, path)
    old.close()
    assert answers(path)
    os.rename(path, tmp_path / "moved")  # a socket that another one was bound in place of
    newest = listen(engine, path)
    new.close()
    assert answers(path)
    newest.close()
    assert not path.exists()


class Refusing:
    """A listening socket whose first ``accept`` fails."""

    def __init__(self, real: socket.socket, failed: threading.Event) -> None:
        self._real, self._failed = real, failed

    def accept(self) -> Any:
        if not self._failed.is_set():
            self._failed.set()
            raise OSError(errno.EMFILE, "too many open files")
        return self._real.accept()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def test_accepting_goes_on_after_a_failure(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bind, failed = listener_module._bind, threading.Event()
    monkeypatch.setattr(listener_module, "_bind", lambda path: Refusing(bind(path), failed))
    listener = listen(engine, tmp_path / "s")
    assert failed.wait(5)
    assert answers(tmp_path / "s")
    listener.close()
    listener._thread.join(5)
    assert not listener._thread.is_alive()


def test_a_client_for_which_there_is_no_thread_is_turned_away(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Exhausted(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    listener = listen(engine, tmp_path / "s")
    with monkeypatch.context() as patched:
        patched.setattr(connection_module.threading, "Thread", Exhausted)
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(5)
            stream.connect(str(tmp_path / "s"))
            assert stream.recv(1) == b""
    assert answers(tmp_path / "s")
    listener.close()
