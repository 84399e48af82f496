"""sha256 and size of every file of a bundle."""

from __future__ import annotations

from pathlib import Path

from mm2c_runtime.checksums import chunk_of, file_digests
from mm2c_runtime.manifest import FileEntry


def sha256_of(path: Path) -> str:
    """The file's hash as the manifest has it: of its bytes, or of its chunks' digests where it is large."""
    size = path.stat().st_size
    ((_, digest),) = file_digests([(path, size, chunk_of(size))])
    return digest


def entries(root: Path, known: dict[str, str], without: frozenset[str] = frozenset()) -> dict[str, FileEntry]:
    """Entry of every file under ``root``, by relative path, but of those named in ``without``. ``known``: hashes made
    while writing (large files)."""
    sizes = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_file() and name not in without:
            sizes[name] = path.stat().st_size
    unknown = {root / name: name for name in sizes if name not in known}
    hashed = file_digests((path, sizes[name], chunk_of(sizes[name])) for path, name in unknown.items())
    digests = known | {unknown[path]: digest for path, digest in hashed}
    return {
        name: FileEntry(sha256=digests[name], bytes=size, chunk=chunk_of(size))
        for name, size in sizes.items()
    }
