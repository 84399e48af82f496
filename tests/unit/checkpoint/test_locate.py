"""Finding the checkpoint: folders, hub ids, and what is taken where none is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mm2c.checkpoint import hub as hub_module
from mm2c.checkpoint import locate, locate_config
from mm2c.errors import UserError


def checkpoint(folder: Path, model_type: str = "minimax_m2", *, weights: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    if weights:
        (folder / "model.safetensors").write_bytes(b"")
    return folder


def cached(cache: Path, repo: str, revision: str = "a" * 40, **options: Any) -> Path:
    """A snapshot in the hub cache's layout."""
    root = cache / f"models--{repo.replace('/', '--')}"
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "blobs").mkdir(exist_ok=True)
    (root / "refs" / "main").write_text(revision)
    return checkpoint(root / "snapshots" / revision, **options)


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "hub").mkdir()
    return {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def refusal(source: str | None, cwd: Path, env: dict[str, str], **options: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        locate(source, cwd=cwd, env=env, **options)
    return caught.value


def test_folder(tmp_path: Path, env: dict[str, str]) -> None:
    folder = checkpoint(tmp_path / "m2")
    found = locate("m2", cwd=tmp_path, env=env)
    assert (found.folder, found.source, found.revision) == (folder, "m2", None)
    assert locate(str(folder), cwd=tmp_path, env=env).folder == folder


def test_folder_without_config(empty: Path, env: dict[str, str]) -> None:
    assert "no config.json" in refusal(str(empty), empty, env).what


def test_no_such_folder(empty: Path, env: dict[str, str]) -> None:
    error = refusal("./nowhere/at/all", empty, env)
    assert "no folder" in error.what
    assert "org/name" in error.remedy


def test_revision_is_for_the_hub(tmp_path: Path, env: dict[str, str]) -> None:
    checkpoint(tmp_path / "m2")
    assert "--revision" in refusal("m2", tmp_path, env, revision="main").what
    assert "--revision" in refusal(None, tmp_path, env, revision="main").what


def test_config_file(tmp_path: Path, env: dict[str, str]) -> None:
    folder = checkpoint(tmp_path / "m2", weights=False)
    path = (folder / "config.json").rename(folder / "config.M2.7.json")
    assert locate_config(str(path), cwd=tmp_path, env=env).config == path
    assert "--config-only" in refusal(str(path), tmp_path, env).remedy
    assert (
        locate_config(str(checkpoint(tmp_path / "m3")), cwd=tmp_path, env=env).config
        == tmp_path / "m3" / "config.json"
    )


def test_hub_id_in_the_cache(tmp_path: Path, empty: Path, env: dict[str, str]) -> None:
    folder = cached(tmp_path / "hub", "MiniMaxAI/MiniMax-M2.7")
    found = locate("MiniMaxAI/MiniMax-M2.7", cwd=empty, env=env)
    assert (found.folder, found.revision) == (folder, "a" * 40)
    assert locate("MiniMaxAI/MiniMax-M2.7", revision="a" * 40, cwd=empty, env=env).folder == folder


def test_hub_id_incomplete_and_offline(tmp_path: Path, empty: Path, env: dict[str, str]) -> None:
    cached(tmp_path / "hub", "MiniMaxAI/MiniMax-M2.7", weights=False)
    error = refusal("MiniMaxAI/MiniMax-M2.7", empty, env)
    assert "not (whole) in the local hub cache" in error.what
    assert "HF_HUB_OFFLINE" in error.remedy
    assert locate_config("MiniMaxAI/MiniMax-M2.7", cwd=empty, env=env).config.name == "config.json"


def test_hub_cannot_be_reached(empty: Path, env: dict[str, str]) -> None:
    del env["HF_HUB_OFFLINE"]
    env["HF_ENDPOINT"] = "http://127.0.0.1:9"  # the discard port: nobody listens
    error = refusal("MiniMaxAI/MiniMax-M2.7", empty, env)
    assert "is not in the local hub cache, and downloading it failed" in error.what
    assert "check the connection" in error.remedy
    assert "no folder MiniMaxAI/MiniMax-M2.7" in error.remedy


def test_current_folder_first(tmp_path: Path, env: dict[str, str]) -> None:
    here = checkpoint(tmp_path / "here")
    env["MM2C_CHECKPOINT"] = str(checkpoint(tmp_path / "there"))
    cached(tmp_path / "hub", "org/m2")
    assert locate(None, cwd=here, env=env).folder == here


def test_variable_second(tmp_path: Path, empty: Path, env: dict[str, str]) -> None:
    env["MM2C_CHECKPOINT"] = str(checkpoint(tmp_path / "there"))
    cached(tmp_path / "hub", "org/m2")
    assert locate(None, cwd=empty, env=env).folder == tmp_path / "there"
    env["MM2C_CHECKPOINT"] = str(tmp_path / "gone" / "far" / "away")
    assert "$MM2C_CHECKPOINT" in refusal(None, empty, env).where


def test_another_model_in_the_current_folder_is_passed_over(tmp_path: Path, env: dict[str, str]) -> None:
    folder = cached(tmp_path / "hub", "org/m2")
    here = checkpoint(tmp_path / "llama", "llama")
    found = locate(None, cwd=here, env=env)
    assert (found.folder, found.source, found.revision) == (folder, "org/m2", "a" * 40)


def test_only_whole_m2_snapshots_count(tmp_path: Path, empty: Path, env: dict[str, str]) -> None:
    cached(tmp_path / "hub", "org/llama", model_type="llama")
    cached(tmp_path / "hub", "org/half", weights=False)
    folder = cached(tmp_path / "hub", "org/m2")
    assert locate(None, cwd=empty, env=env).folder == folder


def test_several_in_the_cache_are_listed(tmp_path: Path, empty: Path, env: dict[str, str]) -> None:
    cached(tmp_path / "hub", "org/m2")
    cached(tmp_path / "hub", "org/m2.7")
    error = refusal(None, empty, env)
    assert "which of them?" in error.what
    assert "org/m2, org/m2.7" in error.what


def test_nothing_anywhere_teaches(tmp_path: Path, empty: Path, env: dict[str, str]) -> None:
    cached(tmp_path / "hub", "org/half", weights=False)
    error = refusal(None, empty, env)
    for part in (str(empty), "$MM2C_CHECKPOINT (not set)", str(tmp_path / "hub"), "org/half (incomplete)"):
        assert part in error.what
    assert "mm2c build MiniMaxAI/MiniMax-M2.7 --tp 4 --fp8" in error.remedy


def test_cache_folder_follows_the_hub_variables() -> None:
    assert hub_module.cache_folder({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}) == Path("/a")
    assert hub_module.cache_folder({"HF_HOME": "/b"}) == Path("/b/hub")
    assert hub_module.cache_folder({"XDG_CACHE_HOME": "/c"}) == Path("/c/huggingface/hub")
    assert hub_module.cache_folder({}) == Path.home() / ".cache/huggingface/hub"
