"""The front on a port of this process, with a scripted engine behind it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from running_front import RunningFront, Start
from scripted_engine import ScriptedEngine

from mm2c_runtime.openai.app import Settings, create_app


@pytest.fixture(scope="session")
def start_front() -> Iterator[Start]:
    """Fields of Settings -> a front that runs until the tests end."""
    started: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(**settings: Any) -> RunningFront:
        engine = ScriptedEngine()
        values = {"models": ("m2", "org/other"), "metrics_url": "http://127.0.0.1:9/metrics", **settings}
        app = create_app(lambda: engine, Settings(**values))
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", ws="none"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        started.append((server, thread))
        end = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < end
            time.sleep(0.01)
        return RunningFront(server.servers[0].sockets[0].getsockname()[1], engine)

    yield start
    for server, thread in started:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="session")
def shared_front(start_front: Start) -> RunningFront:
    return start_front(system_fingerprint="fp_test", max_model_len=100)


@pytest.fixture
def front(shared_front: RunningFront) -> Iterator[RunningFront]:
    """The shared front with a fresh script; no request may outlive its test."""
    fresh = ScriptedEngine()
    shared_front.engine.script, shared_front.engine.is_ready = fresh.script, True
    shared_front.engine.asked.clear()
    yield shared_front
    for client in shared_front.clients:
        client.close()
    shared_front.clients.clear()
    shared_front.until_idle()
