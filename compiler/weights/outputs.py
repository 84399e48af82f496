"""The growing weights files: chunks are assembled in memory, hashed and written once they are whole, in any order."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mm2c.errors import UserError
from mm2c.weights.layout import Entry, FileLayout
from mm2c_runtime.checksums import CHUNK, joined_digest

Array = np.ndarray[Any, Any]
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class WrittenWeights:
    """A written file: ``entries`` in file order, its ``sha256`` as the manifest has it (of the bytes where they are
    one chunk, else of the chunks' digests), its size in ``bytes``."""

    entries: dict[str, Entry]
    sha256: str
    bytes: int


def write_error(error: OSError, path: Path) -> UserError:
    if error.errno in _FULL:
        what, remedy = f"disk full while writing {path.name}", "free space, or write to another disk with -o"
    else:
        what, remedy = f"cannot write {path.name}: {error.strerror}", "choose another output folder with -o"
    return UserError(what, where=str(path.parent), remedy=remedy)


class Output:
    """One file and the digests of its chunks. ``kept``: chunks that an earlier build wrote; the others are written
    by ``write``. ``direct``: past the page cache, where the file system has that."""

    def __init__(self, path: Path, layout: FileLayout, kept: dict[int, bytes], *, direct: bool) -> None:
        self.path, self.layout = path, layout
        self.digests: list[bytes | None] = [None] * max(-(-layout.size // CHUNK), 1)
        for chunk, digest in kept.items():
            self.digests[chunk] = digest
        self.handle = self.direct = -1
        try:
            mode = os.O_RDWR | os.O_CLOEXEC | (0 if kept else os.O_CREAT | os.O_TRUNC)
            self.handle = os.open(path, mode, 0o666)
            os.ftruncate(self.handle, layout.size)
            if direct:
                with suppress(OSError):  # a file system without it
                    self.direct = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_DIRECT)
        except OSError as error:
            if self.handle >= 0:
                self.discard()
            raise write_error(error, path) from error

    def bounds(self, chunk: int) -> tuple[int, int]:
        return chunk * CHUNK, min((chunk + 1) * CHUNK, self.layout.size)

    def write(self, chunk: int, data: memoryview) -> bytes:
        """Hash and write a whole chunk that begins at a page of memory; returns its digest."""
        digest = hashlib.sha256(data).digest()
        place = chunk * CHUNK
        direct = self.direct >= 0 and len(data) == CHUNK  # whole sectors
        try:
            while data:
                try:
                    count = os.pwrite(self.direct if direct else self.handle, data, place)
                except OSError as error:
                    if not direct or error.errno != errno.EINVAL:
                        raise
                    direct = False
                    continue
                data, place = data[count:], place + count
                direct = direct and len(data) % mmap.PAGESIZE == 0
        except OSError as error:
            raise write_error(error, self.path) from error
        self.digests[chunk] = digest
        return digest

    def sync(self) -> None:
        try:
            os.fdatasync(self.handle)
        except OSError as error:
            raise write_error(error, self.path) from error

    def finish(self) -> WrittenWeights:
        """Raises AssertionError where a chunk was never completed or the file has another size than its layout."""
        try:
            os.fsync(self.handle)
            size = os.fstat(self.handle).st_size
            self.close()
        except OSError as error:
            raise write_error(error, self.path) from error
        digests = [digest for digest in self.digests if digest is not None]
        if len(digests) != len(self.digests) or size != self.layout.size:
            raise AssertionError(f"{self.path}: {len(digests)} of {len(self.digests)} chunks, {size} bytes")
        return WrittenWeights(self.layout.entries, joined_digest(digests), size)

    def close(self) -> None:
        handles = [handle for handle in (self.handle, self.direct) if handle >= 0]
        self.handle = self.direct = -1
        for handle in handles:
            os.close(handle)

    def discard(self) -> None:
        with suppress(OSError):
            self.close()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)


class Assembly:
    """The chunks that are being filled. Buffers are used again; as many exist as were ever needed at once."""

    def __init__(self, outputs: list[Output]) -> None:
        self._outputs = outputs
        self._open: dict[tuple[int, int], list[Any]] = {}  # (file, chunk) -> [buffer, bytes that are missing]
        self._free: list[Array] = []
        self._lock = threading.Lock()
        self.buffers = 0  # made so far: all the memory there is, in chunks

    def wanted(self, file: int, offset: int, nbytes: int) -> bool:
        """Whether some of these bytes lie in a chunk that is not written yet."""
        digests = self._outputs[file].digests
        return any(digests[chunk] is None for chunk in _chunks(offset, nbytes))

    def place(self, file: int, offset: int, nbytes: int) -> Array | None:
        """The bytes' place in a chunk's buffer, to be filled and then ``filled``; None where they lie in several
        chunks: then they go through ``copy``."""
        chunks = _chunks(offset, nbytes)
        if len(chunks) > 1:
            return None
        start = offset - chunks[0] * CHUNK
        return self._buffer(file, chunks[0])[start : start + nbytes]

    def copy(self, file: int, offset: int, data: Array) -> list[tuple[int, Array]]:
        """Bytes that lie in several chunks; returns the chunks that are whole now with their buffers."""
        whole = []
        for chunk in _chunks(offset, data.nbytes):
            low, high = max(offset, chunk * CHUNK), min(offset + data.nbytes, (chunk + 1) * CHUNK)
            if self._outputs[file].digests[chunk] is None:
                buffer = self._buffer(file, chunk)
                buffer[low - chunk * CHUNK : high - chunk * CHUNK] = data[low - offset : high - offset]
                whole += self.filled(file, low, high - low)
        return whole

    def filled(self, file: int, offset: int, nbytes: int) -> list[tuple[int, Array]]:
        """These bytes of one chunk are there: the chunk and its buffer, where it is whole now."""
        chunk = offset // CHUNK
        with self._lock:
            record = self._open[file, chunk]
            record[1] -= nbytes
            if record[1]:
                return []
            del self._open[file, chunk]
        return [(chunk, record[0])]

    def give_back(self, buffer: Array) -> None:
        """The buffer of a whole chunk that was written."""
        with self._lock:
            self._free.append(buffer)

    def _buffer(self, file: int, chunk: int) -> Array:
        begin, end = self._outputs[file].bounds(chunk)
        with self._lock:
            record = self._open.get((file, chunk))
            if record is None:
                if not self._free:
                    self._free.append(np.frombuffer(mmap.mmap(-1, CHUNK), np.uint8))
                    self.buffers += 1
                record = self._open[file, chunk] = [self._free.pop(), end - begin]
            buffer: Array = record[0]
            return buffer


def _chunks(offset: int, nbytes: int) -> range:
    return range(offset // CHUNK, max(-(-(offset + nbytes) // CHUNK), offset // CHUNK + 1))
