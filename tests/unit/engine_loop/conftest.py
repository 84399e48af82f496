"""Engines of a test, closed with it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from asked_engine import Asked


@pytest.fixture
def engines() -> Iterator[list[Asked]]:
    made: list[Asked] = []
    yield made
    for asked in made:
        asked.engine.close()
