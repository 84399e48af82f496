"""Bundles of plans that several files' tests read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plan_bundle import make_plan_bundle

from mm2c.bundle.polygraphy_files import write_polygraphy


@pytest.fixture(scope="session")
def bundles(
    random_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """One rank; two ranks whose head is gathered; pages and plugin nodes; no weights."""
    pytest.importorskip("torch")
    checkpoint = random_checkpoint(layers=2, kv_heads=2, vocab=300, seed=5)
    root = tmp_path_factory.mktemp("plans")
    kinds: dict[str, dict[str, Any]] = {
        "one": {},
        "two": {"tp": 2, "rows": 20, "all_logits": True, "layers_per_plan": 2},
        "paged": {"tp": 2, "engine": "tensorrt", "weights": False, "layers_per_plan": 0},
    }
    for name, options in kinds.items():
        program = make_plan_bundle(root / name, checkpoint, **options).tensorrt
        assert program is not None
        write_polygraphy(root / name, program)
    return {name: root / name for name in kinds}
