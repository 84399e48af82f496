"""Servers for the tests: one with an engine that computes nothing, one with the demo checkpoint's bundle."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.triton)


@pytest.fixture(scope="session")
def fake_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from fake_bundle import make

    return make(tmp_path_factory.mktemp("fake") / "bundle")


@pytest.fixture(scope="session")
def fake_server(fake_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """Shared by tests that leave it as they found it."""
    from served import Served

    server = Served(fake_bundle, tmp_path_factory.mktemp("fake-server"))
    yield server
    server.stop()
