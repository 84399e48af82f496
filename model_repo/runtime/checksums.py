"""Whether a bundle's files are the ones its manifest names.

Large files are hashed chunk by chunk on all cores, and their hash is that of the chunks' digests. A file's hash is
remembered in the user's cache folder with its size, change time and inode, so that only the first start of a bundle
reads every byte; a file that was written since is hashed again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from mm2c_runtime.errors import BundleError
from mm2c_runtime.manifest import FileEntry

CHUNK = 8 << 20  # bytes of a chunk of a large file; a file of no more is hashed as it is
_BLOCK = 1 << 20  # bytes read at a time
_WORKERS = max(2, min(8, os.cpu_count() or 1))
_REMEDY = "build the bundle again with `mm2c build … --force`, or copy it again from where it was built"

Stamp = tuple[int, int, int, int]  # size, mtime_ns, ctime_ns, inode
Tag = TypeVar("Tag")


def chunk_of(size: int) -> int:
    """``FileEntry.chunk`` of a file of this size."""
    return CHUNK if size > CHUNK else 0


def joined_digest(digests: Sequence[bytes]) -> str:
    """A file's sha256 in the manifest, by the digests of its chunks: of its bytes where they are one chunk."""
    return digests[0].hex() if len(digests) == 1 else hashlib.sha256(b"".join(digests)).hexdigest()


def chunk_digests(chunks: Iterable[tuple[Path, int, int, Tag]]) -> Iterator[tuple[bytes, int, Tag]]:
    """The sha256 of each (file, offset, bytes) with the bytes and what was given along, in the order given; on all
    cores, in memory that does not grow. OSError where a file cannot be read, EOFError where it is shorter."""
    with ThreadPoolExecutor(_WORKERS) as pool:  # hashing and reading release the GIL
        waiting: deque[tuple[Future[bytes], int, Tag]] = deque()
        try:
            for path, offset, size, tag in chunks:
                waiting.append((pool.submit(_digest, path, offset, size), size, tag))
                if len(waiting) > 2 * _WORKERS:
                    future, done, of = waiting.popleft()
                    yield future.result(), done, of
            for future, done, of in waiting:
                yield future.result(), done, of
        finally:
            pool.shutdown(cancel_futures=True)


def file_digests(paths: Iterable[tuple[Path, int, int]]) -> Iterator[tuple[Path, str]]:
    """The manifest's hash of each (file, its bytes, ``FileEntry.chunk``); many chunks and files at a time."""

    def chunks() -> Iterator[tuple[Path, int, int, tuple[Path, bool, bool]]]:
        for path, size, chunk in paths:
            step = chunk or max(size, 1)
            for offset in range(0, max(size, 1), step):
                yield path, offset, min(step, size - offset), (path, chunk > 0, offset + step >= size)

    joined = hashlib.sha256()
    for digest, _, (path, large, last) in chunk_digests(chunks()):
        joined.update(digest)
        if last:
            yield path, joined.hexdigest() if large else digest.hex()
            joined = hashlib.sha256()


def _digest(path: Path, offset: int, size: int) -> bytes:
    digest = hashlib.sha256()
    memory = memoryview(bytearray(min(size, _BLOCK)))
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while size:
            count = os.preadv(handle, [memory[: min(size, _BLOCK)]], offset)
            if not count:
                raise EOFError(f"{path} became shorter")
            digest.update(memory[:count])
            offset, size = offset + count, size - count
    finally:
        os.close(handle)
    return digest.digest()


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
    fresh.update(_hashed(folder, files, unknown))
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


def _hashed(folder: Path, files: Mapping[str, FileEntry], names: list[str]) -> dict[str, str]:
    by_path = {folder / name: name for name in names}
    work = ((path, files[name].bytes, files[name].chunk) for path, name in by_path.items())
    try:
        return {by_path[path]: digest for path, digest in file_digests(work)}
    except (OSError, EOFError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise BundleError(
            f"a file of the bundle cannot be read: {reason}",
            where=str(getattr(error, "filename", None) or folder),
            remedy=_REMEDY,
        ) from None


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
