"""Downloads a snapshot from the hub with one progress bar in bytes, and says plainly why one failed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from mm2c.errors import UserError
from mm2c.progress import Progress, Quiet, Stage

_POLL = 0.5  # seconds between looks at the growing files


def download(
    repo: str,
    revision: str | None,
    patterns: list[str],
    cache: Path,
    env: Mapping[str, str],
    progress: Progress | None,
) -> Path:
    """The snapshot folder, after fetching those files of the repository's top folder that match ``patterns``
    and are not cached; an interrupted download is resumed. Raises UserError."""
    import huggingface_hub as hub
    from huggingface_hub import errors

    named = f"{repo} (revision {revision})" if revision else repo
    options: dict[str, Any] = {
        "revision": revision,
        "cache_dir": cache,
        "allow_patterns": patterns,
        "ignore_patterns": ["*/*"],  # other formats live in folders of their own
        "endpoint": env.get("HF_ENDPOINT") or None,
    }
    try:
        with _quiet_hub():
            size = _size(hub.snapshot_download, repo, options)
        blobs = cache / f"models--{repo.replace('/', '--')}" / "blobs"
        with (
            (progress or Quiet()).stage(f"Downloading {named}, {decimal(size)}", size) as stage,
            _quiet_hub(),
            _watched(blobs, stage),
        ):
            return Path(hub.snapshot_download(repo, **options))
    except errors.GatedRepoError as error:
        remedy = "accept its licence on the hub and run `hf auth login`"
        raise UserError(f"{named} asks for permission", remedy=remedy) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"{repo} has no revision {revision}", remedy="see its branches and tags on the hub"
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
        raise UserError(what, where=str(cache), remedy=remedy) from error


def _size(snapshot: Callable[..., Any], repo: str, options: dict[str, Any]) -> int:
    """Bytes to fetch."""
    from huggingface_hub.errors import DryRunError

    try:
        files = snapshot(repo, dry_run=True, **options)
    except DryRunError as error:  # its cause says what is wrong
        raise error.__cause__ or error from None
    return sum(file.file_size or 0 for file in files if file.will_download)


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Without the hub client's own bars."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    silent = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not silent:
            enable_progress_bars()


@contextmanager
def _watched(folder: Path, stage: Stage) -> Iterator[None]:
    """Advance ``stage`` by what the folder grows."""
    done = threading.Event()
    start = _bytes_in(folder)

    def watch() -> None:
        seen = start
        while True:
            last = done.wait(_POLL)
            now = _bytes_in(folder)
            if now > seen:
                stage.advance(now - seen)
                seen = now
            if last:
                return

    thread = threading.Thread(target=watch, name="mm2c-download", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.glob("*"):
        try:
            total += path.stat().st_size
        except OSError:  # renamed from its name while incomplete
            continue
    return total
