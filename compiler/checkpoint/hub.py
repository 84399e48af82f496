"""Checkpoints of the Hugging Face hub: its local cache first, a download where that lacks one.

``huggingface_hub`` is imported on first use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mm2c.checkpoint.config_file import MODEL_TYPE
from mm2c.checkpoint.download import download
from mm2c.errors import UserError
from mm2c.progress import Progress
from mm2c_runtime.weights.safetensors_file import INDEX, SINGLE

_WANTED = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]  # weights, tokenizer, template
_CONFIG = ["config.json", "generation_config.json"]


@dataclass(frozen=True)
class Cached:
    """A MiniMax-M2 snapshot of the local hub cache; ``complete``: every shard is there."""

    repo: str
    revision: str
    folder: Path
    complete: bool


def cache_folder(env: Mapping[str, str]) -> Path:
    """Where huggingface_hub keeps its files, by its own environment variables."""
    if place := env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE"):
        return Path(place).expanduser()
    if home := env.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    base = env.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "huggingface" / "hub"


def is_m2(folder: Path) -> bool:
    """Whether config.json there says minimax_m2; False where it is missing or broken."""
    try:
        value = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return bool(value["model_type"] == MODEL_TYPE or value["architectures"] == ["MiniMaxM2ForCausalLM"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def is_complete(folder: Path) -> bool:
    """Whether the weights that the index names are all there (not whether they are valid)."""
    if not (folder / "config.json").is_file():
        return False
    if (folder / SINGLE).is_file():
        return True
    try:
        files = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False
    return all((folder / str(file)).is_file() for file in files)


def cached_checkpoints(env: Mapping[str, str]) -> list[Cached]:
    """The M2 snapshots of the cache, the most recent revision of each repository, sorted by name."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir(cache_folder(env)).repos
    except (CacheNotFound, OSError, ValueError):
        return []
    found = []
    for repo in repos:
        snapshots = sorted(repo.revisions, key=lambda revision: revision.last_modified, reverse=True)
        ours = [s for s in snapshots if repo.repo_type == "model" and is_m2(s.snapshot_path)]
        whole = [s for s in ours if is_complete(s.snapshot_path)]
        for snapshot in (whole or ours)[:1]:
            found.append(Cached(repo.repo_id, snapshot.commit_hash, snapshot.snapshot_path, bool(whole)))
    return sorted(found, key=lambda item: item.repo)


def fetch(
    repo: str,
    revision: str | None,
    env: Mapping[str, str],
    progress: Progress | None,
    *,
    config_only: bool,
) -> Path:
    """The snapshot folder of ``repo``: from the cache where it is whole there, else downloaded.

    Raises UserError where the hub cannot be reached or has no such model.
    """
    where = cache_folder(env)
    folder = _snapshot(where / f"models--{repo.replace('/', '--')}", revision or "main")
    if folder and ((folder / "config.json").is_file() if config_only else is_complete(folder)):
        return folder
    if env.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        what = f"{repo} is not (whole) in the local hub cache, and HF_HUB_OFFLINE forbids the download"
        raise UserError(what, where=str(where), remedy="unset HF_HUB_OFFLINE, or give a checkpoint folder")
    return download(repo, revision, _CONFIG if config_only else _WANTED, where, env, progress)


def _snapshot(root: Path, revision: str) -> Path | None:
    """Where the cache keeps a branch, tag or commit of a repository: what ``refs`` names, under
    ``snapshots``."""
    reference = root / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    folder = root / "snapshots" / commit
    return folder if folder.is_dir() else None
