"""sha256 and size of every file of a bundle."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mm2c_runtime.manifest import FileEntry

CHUNK = 1 << 22  # bytes read at a time


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def entries(root: Path, known: dict[str, str]) -> dict[str, FileEntry]:
    """Entry of every file under ``root``, by relative path. ``known``: hashes made while writing (large files)."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_file():
            name = path.relative_to(root).as_posix()
            found[name] = FileEntry(sha256=known.get(name) or sha256_of(path), bytes=path.stat().st_size)
    return found
