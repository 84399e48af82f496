"""What the layouts of one checkpoint share: its trace and the reference's answers, each made once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from remembering import RememberingReference

import mm2c.trace


@pytest.fixture(scope="module")
def references() -> dict[Path, RememberingReference]:
    return {}


@pytest.fixture(scope="module", autouse=True)
def _one_trace_for_all_layouts() -> Iterator[None]:
    """A trace does not depend on tp and ep, and no pass changes it: builds of one checkpoint share it."""
    original, known = mm2c.trace.trace, {}

    def remembering(config: Any, formats: Any, options: Any, recipes: Any, **more: Any) -> Any:
        key = (config, formats, options.context, options.all_logits)
        if key not in known:
            known.clear()
            known[key] = original(config, formats, options, recipes, **more)
        return known[key]

    mm2c.trace.trace = remembering
    yield
    mm2c.trace.trace = original
