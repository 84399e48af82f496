"""Which checkpoint is meant: a folder, a hub id, or nothing at all."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mm2c.checkpoint import hub
from mm2c.checkpoint.family import member_folder, member_named, nearest_name
from mm2c.errors import UserError
from mm2c.progress import Progress

VARIABLE = "MM2C_CHECKPOINT"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Located:
    """``source`` is what the user gave or what was found for him; ``revision`` the hub's commit, None for a
    folder; ``config`` the file that holds the configuration."""

    folder: Path
    source: str
    revision: str | None
    config: Path


def locate(
    source: str | None,
    *,
    revision: str | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Located:
    """The checkpoint folder that ``source`` means. Without one: the current folder if it is an M2 checkpoint,
    else ``$MM2C_CHECKPOINT``, else the only M2 of the hub cache. Raises UserError saying what was looked
    at."""
    return _locate(source, revision, cwd, env, progress, config_only=False)


def locate_config(
    source: str | None,
    *,
    revision: str | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Located:
    """As ``locate``, but ``config`` is all that is needed: a path to the file itself will do, and so will the name
    of a released member of the family (m2.7), whose configuration is built in; no weights are downloaded."""
    return _locate(source, revision, cwd, env, progress, config_only=True)


def _locate(
    source: str | None,
    revision: str | None,
    cwd: Path | None,
    env: Mapping[str, str] | None,
    progress: Progress | None,
    *,
    config_only: bool,
) -> Located:
    cwd = Path.cwd() if cwd is None else cwd
    env = os.environ if env is None else env
    if source is None:
        return _search(revision, cwd, env, progress, config_only)
    if not source.strip():
        raise UserError(
            "the checkpoint's name is empty",
            where="CHECKPOINT",
            remedy="give a folder or a hub id org/name, or leave it away to have it found",
        )
    path = cwd / Path(source).expanduser()
    if path.is_dir() or path.is_file():
        if revision is not None:
            raise UserError(f"--revision {revision} is for hub ids", where=f"{source} is a local path")
        return _local(path, source, config_only)
    member = member_named(source)
    if member is not None and config_only and revision is None:
        folder = member_folder(member)
        return Located(folder, member.name, None, folder / "config.json")
    if not _HUB_ID.fullmatch(source):
        remedy = f"{nearest_name(source)} give a folder, or a hub id org/name".lstrip()
        if member is not None:
            remedy = (
                f"for its weights give their folder or {member.hub_id}; {source} alone is a configuration"
            )
        raise UserError(f"there is no folder {source}", where=str(cwd), remedy=remedy)
    folder = hub.fetch(source, revision, env, progress, config_only=config_only)
    return Located(folder, source, folder.name, folder / "config.json")


def _local(path: Path, source: str, config_only: bool) -> Located:
    if path.is_file():
        if config_only and path.suffix == ".json":
            return Located(path.parent, source, None, path)
        remedy = "give the checkpoint's folder, or add --config-only to compile a config.json without weights"
        raise UserError(f"{source} is a file", where=str(path), remedy=remedy)
    if not (path / "config.json").is_file():
        remedy = "give the folder that holds config.json and the safetensors shards"
        raise UserError(f"{source} is no checkpoint: it has no config.json", where=str(path), remedy=remedy)
    return Located(path, source, None, path / "config.json")


def _search(
    revision: str | None, cwd: Path, env: Mapping[str, str], progress: Progress | None, config_only: bool
) -> Located:
    if revision is not None:
        raise UserError(
            "--revision without a hub id", remedy="name the model: mm2c build org/name --revision …"
        )
    if hub.is_m2(cwd):
        return Located(cwd, str(cwd), None, cwd / "config.json")
    if named := env.get(VARIABLE):
        try:
            return _locate(named, None, cwd, env, progress, config_only=config_only)
        except UserError as error:
            where = "; ".join(part for part in (f"${VARIABLE} = {named}", error.where) if part)
            raise UserError(error.what, where=where, remedy=error.remedy) from error
    cached = hub.cached_checkpoints(env)
    usable = [item for item in cached if item.complete or config_only]
    if len(usable) == 1:
        only = usable[0]
        return Located(only.folder, only.repo, only.revision, only.folder / "config.json")
    looked = [
        f"the current folder {cwd} (no MiniMax-M2 config.json)",
        f"${VARIABLE} (not set)",
        f"the hub cache {hub.cache_folder(env)} ({_listing(cached)})",
    ]
    what = "which of them?" if usable else "no checkpoint given and none found"
    lines = "\n".join(f"    {line}" for line in looked)
    example = usable[0].repo if usable else "MiniMaxAI/MiniMax-M2.7"
    remedy = f"name one: a folder, or a hub id, as in `mm2c build {example} --tp 4 --fp8`"
    raise UserError(f"{what} Looked at:\n{lines}", remedy=remedy)


def _listing(cached: list[hub.Cached]) -> str:
    if not cached:
        return "no MiniMax-M2 there"
    return ", ".join(item.repo + ("" if item.complete else " (incomplete)") for item in cached)
