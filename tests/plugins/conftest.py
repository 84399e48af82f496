"""The built plugin library, and launches recorded instead of run.

``MM2C_PLUGINS_BUILD`` names another folder with the two libraries than plugins/build, for example a bundle's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from plugin_cases import Recorder

from mm2c_plugins.host import Library
from mm2c_plugins.host.library import BUILD, NAME

FOLDER = Path(os.environ.get("MM2C_PLUGINS_BUILD", BUILD))


@pytest.fixture(scope="session")
def plugin_folder() -> Path:
    """Where libmm2c_plugins.so and libmm2c_host.so lie."""
    if not (FOLDER / NAME).exists():
        pytest.skip(f"no {NAME} in {FOLDER}: `make plugins` builds it")
    return FOLDER


@pytest.fixture(scope="session")
def library(plugin_folder: Path) -> Library:
    return Library(plugin_folder)


@pytest.fixture
def recorder(library: Library) -> Iterator[Recorder]:
    """Launches are recorded and succeed, on a pretended 9.0 unless a test pretends another device."""
    recorder = Recorder(library)
    library.set_launcher(recorder)
    library.pretend_device(90)
    yield recorder
    library.set_launcher(None)
    library.pretend_device(0)
