"""`mm2c serve --checkpoint`: settled before a server starts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mm2c.checkpoint import Checkpoint
from mm2c.errors import UserError
from mm2c.serve.checkpoint import served_checkpoint
from mm2c_runtime.errors import BundleError
from mm2c_runtime.manifest import CheckpointInfo


@pytest.fixture
def manifest(random_checkpoint: Callable[..., Path]) -> Any:
    folder = random_checkpoint(layers=1, experts=2, seed=51)
    with Checkpoint.open(folder) as checkpoint:
        info = CheckpointInfo(
            source="somewhere",
            revision=None,
            identity=checkpoint.identity(),
            format="fp8",
            content=checkpoint.content(),
            folder=str(folder),
        )
    return SimpleNamespace(weights="checkpoint", checkpoint=info)


def test_it_is_where_it_was_or_where_the_user_says(manifest: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(manifest.checkpoint.folder)
    assert served_checkpoint(manifest, None) == folder.resolve()
    monkeypatch.chdir(folder.parent)
    assert served_checkpoint(manifest, Path(folder.name)) == folder.resolve()  # Triton runs in another folder
    monkeypatch.setenv("MM2C_CHECKPOINT_FOLDER", os.path.relpath(folder))
    assert served_checkpoint(manifest, None) == folder.resolve()


def test_another_one_is_refused(
    manifest: Any, random_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match="weights are not those"):
        served_checkpoint(manifest, random_checkpoint(layers=1, experts=2, seed=52))
    with pytest.raises(BundleError, match="not there"):
        served_checkpoint(manifest, tmp_path / "gone")


def test_a_bundle_with_weights_takes_none(tmp_path: Path) -> None:
    own = SimpleNamespace(weights="copy", checkpoint=None)
    assert served_checkpoint(own, None) is None  # type: ignore[arg-type]
    with pytest.raises(UserError, match="weights of its own"):
        served_checkpoint(own, tmp_path)  # type: ignore[arg-type]
