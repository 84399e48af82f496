"""Whether a bundle's files are the ones its manifest names.

A file's hash is remembered in the user's cache folder with its size, change time and inode, so that only
the first start of a bundle reads every byte; a file that was written since is hashed again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mm2c_runtime.errors import BundleError
from mm2c_runtime.manifest import FileEntry

_CHUNK = 4 << 20  # bytes
_REMEDY = "build the bundle again with `mm2c build … --force`, or copy it again from where it was built"

Stamp = tuple[int, int, int, int]  # size, mtime_ns, ctime_ns, inode


def check_sizes(folder: Path, files: Mapping[str, FileEntry]) -> None:
    """Raises BundleError naming the first file that is missing or has another size."""
    for name, entry in files.items():
        path = folder / name
        try:
            size = path.stat().st_size
        except OSError as error:
            raise BundleError(
                f"{name} cannot be read: {error.strerror}", where=str(path), remedy=_REMEDY
            ) from None
        if size != entry.bytes:
            raise BundleError(
                f"{name} has {size} bytes, the manifest says {entry.bytes}", where=str(path), remedy=_REMEDY
            )


def check_contents(folder: Path, files: Mapping[str, FileEntry], *, cache: Path | None = None) -> None:
    """``check_sizes``, then the sha256 of every file. ``cache``: folder of remembered hashes, None for the
    user's."""
    check_sizes(folder, files)
    memory = _memory_of(folder, cache)
    known = _recall(memory)
    stamps = {name: _stamp(folder / name) for name in files}
    fresh = {name: known[name][1] for name in files if name in known and known[name][0] == stamps[name]}
    unknown = [name for name in files if name not in fresh]
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:  # hashing releases the GIL
        fresh.update(zip(unknown, pool.map(lambda name: _sha256(folder / name), unknown), strict=True))
    for name, entry in files.items():
        if fresh[name] != entry.sha256:
            raise BundleError(
                f"{name} was altered after the build (its sha256 is not the manifest's)",
                where=str(folder / name),
                remedy=_REMEDY,
            )
    if unknown:
        _remember(memory, {name: (stamps[name], fresh[name]) for name in files})


def remember_contents(folder: Path, files: Mapping[str, FileEntry]) -> None:
    """Take the manifest's hashes for the files' as they are: for who has just written, hashed and placed them."""
    _remember(_memory_of(folder, None), {name: (_stamp(folder / name), files[name].sha256) for name in files})


def _memory_of(folder: Path, cache: Path | None) -> Path:
    """The file that remembers the hashes of one bundle."""
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:24]
    return (cache or _user_cache()) / f"{name}.json"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_CHUNK):
                digest.update(block)
    except OSError as error:
        raise BundleError(
            f"{path.name} cannot be read: {error.strerror}", where=str(path), remedy=_REMEDY
        ) from None
    return digest.hexdigest()


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _user_cache() -> Path:
    """In ``$MM2C_CACHE``, else in ``mm2c`` under ``$XDG_CACHE_HOME`` or ``~/.cache``, as the compiler's."""
    if own := os.environ.get("MM2C_CACHE"):
        return Path(own) / "checksums"
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "mm2c" / "checksums"


def _recall(memory: Path) -> dict[str, tuple[Stamp, str]]:
    """The remembered hashes; none where there is no memory or it is damaged."""
    try:
        entries = json.loads(memory.read_text("utf-8"))
        return {name: ((*map(int, stamp),), str(digest)) for name, (stamp, digest) in entries.items()}  # type: ignore[misc]
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _remember(memory: Path, entries: Mapping[str, tuple[Stamp, str]]) -> None:
    """Best effort: without a writable cache folder the next start hashes again."""
    temporary = memory.with_name(f"{memory.name}.{os.getpid()}")
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(entries), "utf-8")
        temporary.replace(memory)
    except OSError:
        if temporary.exists():
            temporary.unlink()
