"""Checkpoints of the Hugging Face hub: its local cache first, a download where that lacks one.

``huggingface_hub`` is imported on first use.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mm2c.checkpoint.config_file import MODEL_TYPE
from mm2c.checkpoint.index import INDEX, SINGLE
from mm2c.errors import UserError
from mm2c.progress import Progress

_WANTED = [
    "*.safetensors",
    "*.json",
    "*.jinja",
    "*.txt",
    "*.model",
]  # weights, configuration, tokenizer, template
_UNWANTED = ["*/*", "*.md"]  # other formats in folders of their own


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
    repo: str, revision: str | None, env: Mapping[str, str], progress: Progress | None, *, config_only: bool
) -> Path:
    """The snapshot folder of ``repo``: from the cache where it is whole there, else downloaded (resumably).

    ``progress`` None downloads silently. Raises UserError where the hub cannot be reached or has no such
    model.
    """
    import huggingface_hub as hub
    from huggingface_hub import errors

    wanted = ["config.json", "generation_config.json"] if config_only else _WANTED
    where = cache_folder(env)
    try:
        folder = Path(hub.snapshot_download(repo, revision=revision, cache_dir=where, local_files_only=True))
        if (folder / "config.json").is_file() if config_only else is_complete(folder):
            return folder
    except errors.HFValidationError as error:
        raise UserError(
            f'"{repo}" is neither a folder nor a hub id', remedy="hub ids look like org/name"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.RevisionNotFoundError, OSError):
        pass
    named = f"{repo} (revision {revision})" if revision else repo
    offline = env.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    if offline:
        what = f"{named} is not (whole) in the local hub cache, and HF_HUB_OFFLINE forbids the download"
        raise UserError(what, where=str(where), remedy="unset HF_HUB_OFFLINE, or give a checkpoint folder")
    if progress is not None:
        progress.note(f"Downloading {named} from the hub into {where}")
    else:
        hub.utils.disable_progress_bars()
    try:
        place = hub.snapshot_download(
            repo, revision=revision, cache_dir=where, allow_patterns=wanted, ignore_patterns=_UNWANTED
        )
        return Path(place)
    except errors.GatedRepoError as error:
        remedy = "accept its licence on the hub and run `hf auth login`"
        raise UserError(f"{named} asks for permission", remedy=remedy) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"{repo} has no revision {revision}", remedy="see the branches and tags on the hub"
        ) from error
    except errors.RepositoryNotFoundError as error:
        remedy = (
            f"check the name, or run `hf auth login` if it is private; there is no folder {repo} here either"
        )
        raise UserError(f"the hub has no model {repo}", remedy=remedy) from error
    except Exception as error:  # the HTTP client's own classes: no connection, timeout, proxy, full disk
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        what = f"{named} is not in the local hub cache, and downloading it failed: {reason}"
        remedy = f"check the connection, or give a checkpoint folder; there is no folder {repo} here"
        raise UserError(what, where=str(where), remedy=remedy) from error
    finally:
        if progress is None and not os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS"):
            hub.utils.enable_progress_bars()
