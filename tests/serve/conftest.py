"""Servers for the tests: one with an engine that computes nothing, one with the demo checkpoint's bundle."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.triton)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """A failed test shows what its server and supervisor said, so that a dead server names its cause."""
    report = yield
    if report.failed:
        from served import Served

        for name, value in getattr(item, "funcargs", {}).items():
            if isinstance(value, Served):
                report.sections.append((f"mm2c serve of {name}", value.story()))
    return report


@pytest.fixture(scope="session")
def fake_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from fake_bundle import make

    return make(tmp_path_factory.mktemp("fake") / "bundle")


@pytest.fixture(scope="session")
def fake_server(fake_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """Shared by tests that leave it as they found it."""
    from served import Served

    server = Served(fake_bundle, tmp_path_factory.mktemp("fake-server"), "--openai-port", "0")
    yield server
    server.stop()


@pytest.fixture
def server(fake_bundle: Path, tmp_path: Path) -> Iterator[object]:
    """One of its own, for tests that kill or stop it."""
    from served import Served

    server = Served(fake_bundle, tmp_path)
    yield server
    if server.process.poll() is None:
        server.stop()


@pytest.fixture(scope="session")
def bundle_server(tiny_m2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """The demo checkpoint at tp 4, built by the pipeline and served."""
    from served import Served

    from mm2c.pipeline import build_bundle
    from mm2c.request import BuildRequest

    bundle = tmp_path_factory.mktemp("served") / "tiny-m2-tp4"
    build_bundle(BuildRequest(source=str(tiny_m2), output=bundle, tp=4, fp8=True, context=1024))
    server = Served(bundle, tmp_path_factory.mktemp("bundle-server"), "--openai-port", "0")
    yield server
    server.stop()
