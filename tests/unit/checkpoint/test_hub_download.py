"""A download through the real hub client, from a hub on localhost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from local_hub import COMMIT, local_hub

from mm2c.checkpoint import Checkpoint, locate, locate_config
from mm2c.errors import UserError

REPO = "MiniMaxAI/MiniMax-M2.7"


class Heard:
    def __init__(self) -> None:
        self.stages: list[tuple[str, int | None]] = []
        self.advanced = 0

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Heard]:
        self.stages.append((title, total))
        yield self

    def advance(self, amount: int = 1) -> None:
        self.advanced += amount

    def note(self, text: str) -> None:
        return


@pytest.fixture
def hub(random_checkpoint: Callable[..., Path], tmp_path: Path) -> Iterator[dict[str, Any]]:
    import shutil

    folder = tmp_path / "remote"
    shutil.copytree(random_checkpoint(), folder)
    (folder / "original").mkdir()
    (folder / "original" / "big.safetensors").write_bytes(b"another format")
    (folder / "modeling_minimax_m2.py").write_text("raise SystemExit")
    with local_hub(REPO, folder) as (endpoint, seen):
        env = {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_ENDPOINT": endpoint}
        yield {"env": env, "seen": seen, "remote": folder, "cwd": tmp_path}


def test_download_then_cache(hub: dict[str, Any]) -> None:
    heard = Heard()
    found = locate(REPO, cwd=hub["cwd"], env=hub["env"], progress=heard)
    assert found.revision == COMMIT
    assert Checkpoint.open(found.folder).config.layers == 2
    assert not (found.folder / "original").exists()
    assert not (found.folder / "modeling_minimax_m2.py").exists()
    ((title, total),) = heard.stages
    assert title.startswith(f"Downloading {REPO}, ")
    assert heard.advanced == total == sum(p.stat().st_size for p in found.folder.iterdir())
    requests = len(hub["seen"])
    assert locate(REPO, cwd=hub["cwd"], env=hub["env"]).folder == found.folder
    assert locate(None, cwd=hub["cwd"], env=hub["env"]).folder == found.folder
    assert len(hub["seen"]) == requests  # the cache alone answers


def test_a_broken_off_download_is_completed(hub: dict[str, Any]) -> None:
    found = locate(REPO, cwd=hub["cwd"], env=hub["env"])
    shard = sorted(found.folder.glob("*.safetensors"))[0]
    shard.resolve().unlink()
    shard.unlink()
    assert locate(REPO, cwd=hub["cwd"], env=hub["env"]).folder == found.folder
    assert shard.exists()


def test_config_alone(hub: dict[str, Any]) -> None:
    path = locate_config(REPO, cwd=hub["cwd"], env=hub["env"]).config
    assert sorted(p.name for p in path.parent.iterdir()) == ["config.json", "generation_config.json"]
    assert locate(REPO, cwd=hub["cwd"], env=hub["env"]).folder == path.parent
    assert list(path.parent.glob("*.safetensors"))


def test_unknown_model(hub: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="the hub has no model org/other"):
        locate("org/other", cwd=hub["cwd"], env=hub["env"])


def test_unknown_revision(hub: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="has no revision v9"):
        locate(REPO, revision="v9", cwd=hub["cwd"], env=hub["env"])
