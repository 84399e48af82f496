"""The checkpoint's files while they are repacked: read in parallel, and watched, for they must not change."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from mm2c.errors import UserError

Stamp = tuple[int, int, int, int]  # size, mtime_ns, device, inode
_REMEDY = "leave the checkpoint alone during a build, then run the same command again"
_READ = 1 << 30  # bytes of one read at most


class Stored(Protocol):
    """Where and how a tensor lies: its file's name, its dtype and shape, its offset and size in bytes."""

    @property
    def file(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def offset(self) -> int: ...
    @property
    def nbytes(self) -> int: ...


class TensorFiles(Protocol):
    """What the repacker needs of a ``Checkpoint``."""

    @property
    def folder(self) -> Path: ...
    @property
    def tensors(self) -> Mapping[str, Stored]: ...


def stamps_of(checkpoint: TensorFiles) -> dict[str, Stamp]:
    """What each shard is known again by. UserError where one is gone, or is no longer what its header said."""
    ends: dict[str, int] = {}
    for info in checkpoint.tensors.values():
        ends[info.file] = max(ends.get(info.file, 0), info.offset + info.nbytes)
    stamps = {}
    for file, end in sorted(ends.items()):
        stamps[file] = _stamp(checkpoint.folder, file)
        if stamps[file][0] < end:
            raise _changed(checkpoint.folder, file)
    return stamps


def check_stamps(folder: Path, stamps: Mapping[str, Stamp], since: str = "while it was read") -> None:
    """UserError naming the first shard that is not what it was."""
    for file, stamp in stamps.items():
        if _stamp(folder, file, since) != stamp:
            raise _changed(folder, file, since)


class Shards:
    """Open files of a checkpoint, each checked against its stamp when it is opened. For many threads."""

    def __init__(self, folder: Path, stamps: Mapping[str, Stamp]) -> None:
        self.folder, self.stamps = folder, stamps
        self.bytes_read = 0
        self._handles: dict[str, int] = {}
        self._lock = threading.Lock()

    def read(self, file: str, offset: int, into: memoryview) -> None:
        """Fill ``into``. UserError naming the shard where it became shorter or cannot be read."""
        handle = self._handle(file)
        with self._lock:
            self.bytes_read += len(into)
        try:
            while into:
                count = os.preadv(handle, [into[:_READ]], offset)
                if not count:
                    raise _changed(self.folder, file)
                into, offset = into[count:], offset + count
        except OSError as error:
            raise UserError(
                f"cannot read shard {file}: {error.strerror}",
                where=str(self.folder),
                remedy="check the disk it lies on",
            ) from error

    def announce(self, file: str, offset: int, size: int) -> None:
        """Tell the kernel that these bytes are read soon."""
        with suppress(OSError):
            os.posix_fadvise(self._handle(file), offset, size, os.POSIX_FADV_WILLNEED)

    def check(self) -> None:
        check_stamps(self.folder, self.stamps)

    def close(self) -> None:
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()

    def _handle(self, file: str) -> int:
        with self._lock:
            if file not in self._handles:
                try:
                    handle = os.open(self.folder / file, os.O_RDONLY)
                except OSError as error:
                    raise _changed(self.folder, file) from error
                self._handles[file] = handle
                if _facts(os.fstat(handle)) != self.stamps[file]:
                    raise _changed(self.folder, file)
            return self._handles[file]


def _facts(status: os.stat_result) -> Stamp:
    return status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino


def _stamp(folder: Path, file: str, since: str = "while it was read") -> Stamp:
    try:
        return _facts((folder / file).stat())
    except OSError as error:
        raise _changed(folder, file, since) from error


def _changed(folder: Path, file: str, since: str = "while it was read") -> UserError:
    return UserError(f"shard {file} changed {since}", where=str(folder), remedy=_REMEDY)
