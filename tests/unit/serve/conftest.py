"""The stub's service with a scripted engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fake_pb
import pytest
from fake_engine import ScriptedClient

from mm2c_runtime.stub import link as link_module
from mm2c_runtime.stub.service import Service


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """Connected; its engine is ``ScriptedClient.current``."""
    monkeypatch.setattr(link_module, "EngineClient", ScriptedClient)
    service = Service(fake_pb, Path("/nowhere"), lambda: None, unary=False)
    service.link.connect(1)
    yield service
    service.close()
