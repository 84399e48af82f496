"""Connections that end while others begin: who is failed, and when a new engine is wanted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_engine import ScriptedClient, until

from mm2c_runtime.errors import RequestError
from mm2c_runtime.stub import link as link_module
from mm2c_runtime.stub.link import EngineLink


class Client(ScriptedClient):
    """``during_connect`` runs before ``connect`` returns."""

    made: list[Client]
    during_connect: Callable[[Client], None]

    def connect(self, timeout: float) -> None:
        Client.made.append(self)
        Client.during_connect(self)


class Heard:
    def __init__(self) -> None:
        self.failed: list[str] = []
        self.down = 0

    def is_down(self) -> None:
        self.down += 1


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch, heard: Heard) -> EngineLink:
    monkeypatch.setattr(link_module, "EngineClient", Client)
    monkeypatch.setattr(link_module, "RETRY_SECONDS", 0.01)
    Client.made = []
    Client.during_connect = staticmethod(lambda client: None)  # type: ignore[assignment]
    return EngineLink(Path("/nowhere"), lambda event: None, heard.failed.extend, heard.is_down)


def test_the_late_end_of_an_old_connection_leaves_the_new_one_alone(link: EngineLink, heard: Heard) -> None:
    link.connect(1)
    link.submit("old", {})
    link.connect(1)  # the engine was replaced before the old connection's reader noticed
    link.submit("new", {})
    old, new = Client.made
    old.die()
    assert heard.failed == ["old"]
    assert heard.down == 0
    link.submit("newer", {})
    assert new.submitted == ["new", "newer"]
    new.die()
    assert heard.failed == ["old", "new", "newer"]
    assert heard.down == 1
    assert not link.connected


def test_an_engine_that_dies_while_it_is_connected_is_not_kept(link: EngineLink) -> None:
    Client.during_connect = staticmethod(lambda client: client.die())  # type: ignore[assignment]
    with pytest.raises(ConnectionError, match="went away while it was being connected"):
        link.connect(1)
    assert not link.connected
    with pytest.raises(RequestError, match="UNAVAILABLE"):
        link.submit("1", {})


def test_a_link_that_keeps_connected_gets_over_it(link: EngineLink) -> None:
    def first_dies(client: Client) -> None:
        if len(Client.made) == 1:
            client.die()

    Client.during_connect = staticmethod(first_dies)  # type: ignore[assignment]
    link.keep_connected()
    until(lambda: link.connected)
    assert len(Client.made) == 2
    link.close()


def test_a_connection_made_while_closing_is_closed(link: EngineLink) -> None:
    connecting, go = threading.Event(), threading.Event()

    def slow(client: Client) -> None:
        connecting.set()
        go.wait(5)

    Client.during_connect = staticmethod(slow)  # type: ignore[assignment]
    thread = threading.Thread(target=link.connect, args=(1,))
    thread.start()
    assert connecting.wait(5)
    link.close()
    go.set()
    thread.join(5)
    assert Client.made[0].closed
    assert not link.connected
