"""What of the growing weights files is safely on the disk: an append-only file beside them, for a build after a kill.

The first line names the build, its files and the checkpoint's; each further line is a finished piece ("chunk") of a
file with its sha256, written after the chunk's data was synced. Every line ends with a check code of itself. A line
that a kill cut short is no line; anything else that does not read makes the journal worthless.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mm2c.weights.shards import Stamp

JOURNAL = ".weights.journal"  # its name in a stage folder
Record = tuple[int, int, bytes]  # file, chunk, sha256


@dataclass(frozen=True)
class Build:
    """What a journal belongs to. ``key``: of everything that decides the files' content; ``files``: their names and
    sizes in order; ``chunk``: bytes of a chunk; ``stamps``: the checkpoint's files."""

    key: str
    files: tuple[tuple[str, int], ...]
    chunk: int
    stamps: Mapping[str, Stamp]

    def as_json(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "files": [list(file) for file in self.files],
            "chunk": self.chunk,
            "stamps": {name: list(stamp) for name, stamp in self.stamps.items()},
        }


@dataclass(frozen=True)
class Claims:
    """What a journal claims: the stamps of its checkpoint, and the digests by file and chunk."""

    stamps: dict[str, Stamp]
    digests: dict[tuple[int, int], bytes]
    length: int  # bytes of the journal up to the end of its last whole line


def journal_key(folder: Path) -> str | None:
    """The key of the build whose stage ``folder`` is; None where it holds no journal, or a damaged one."""
    try:
        with (folder / JOURNAL).open("rb") as file:
            header = _header(file.readline())
    except (OSError, ValueError):
        return None
    return str(header["key"])


def read_claims(path: Path, build: Build) -> Claims | None:
    """None where there is no journal, it is another build's, or it is damaged."""
    try:
        *lines, _cut_short = path.read_bytes().split(b"\n")
        header = _header(lines[0] + b"\n")
        stamps = {str(name): _stamp(stamp) for name, stamp in header["stamps"].items()}
        expected = build.as_json()
        if any(header[key] != expected[key] for key in ("key", "files", "chunk")):
            return None
        digests = {}
        for line in lines[1:]:
            file, chunk, digest = _checked(line).decode("ascii").split(" ")
            if not 0 <= int(chunk) * build.chunk < build.files[int(file)][1]:
                return None
            digests[int(file), int(chunk)] = bytes.fromhex(digest)
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None
    return Claims(stamps, digests, sum(len(line) + 1 for line in lines))


class Journal:
    """The journal of the running build. ``claims``: it goes on behind what they were read from."""

    def __init__(self, path: Path, build: Build, claims: Claims | None = None) -> None:
        if claims is None:
            path.unlink(missing_ok=True)
            self._file: BinaryIO = path.open("xb", buffering=0)
            self._write(_line(json.dumps(build.as_json(), separators=(",", ":")).encode()))
            _sync_folder(path.parent)
        else:
            self._file = path.open("r+b", buffering=0)
            self._file.truncate(claims.length)
            self._file.seek(0, os.SEEK_END)

    def append(self, records: Iterable[Record]) -> None:
        """Chunks whose data is on the disk."""
        self._write(b"".join(_line(f"{f} {c} {digest.hex()}".encode()) for f, c, digest in records))

    def close(self) -> None:
        self._file.close()

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) or 0 :]
        os.fdatasync(self._file.fileno())


def _line(content: bytes) -> bytes:
    return content + f" {zlib.crc32(content):08x}\n".encode()


def _checked(line: bytes) -> bytes:
    content, _, code = line.rpartition(b" ")
    if f"{zlib.crc32(content):08x}".encode() != code:
        raise ValueError("a line is not what was written")
    return content


def _header(line: bytes) -> dict[str, Any]:
    if not line.endswith(b"\n"):
        raise ValueError("the first line was cut short")
    header = json.loads(_checked(line[:-1]))
    if not isinstance(header, dict) or not isinstance(header.get("key"), str):
        raise ValueError("the first line names no build")
    return header


def _stamp(raw: Any) -> Stamp:
    size, mtime, device, inode = (int(value) for value in raw)
    return size, mtime, device, inode


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
