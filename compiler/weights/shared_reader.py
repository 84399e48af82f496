"""Reads each checkpoint tensor once for all the ranks that want parts of it, and checks what it read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from mm2c.weights.finite import require_finite

Array = np.ndarray[Any, Any]
_WHOLE = 48 << 20  # tensors up to this many bytes are read whole and kept
_KEPT = 128 << 20  # bytes kept altogether


class Stored(Protocol):
    """Where and how a tensor lies: its file's name, its size in bytes, its shape."""

    @property
    def file(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


class TensorFiles(Protocol):
    """What the repacker needs of a ``Checkpoint``."""

    @property
    def tensors(self) -> Mapping[str, Stored]: ...

    def read_rows(self, key: str, start: int, stop: int) -> Array: ...


class SharedReader:
    """The most recently used tensors stay in memory, so ranks that go through a layer together share a read."""

    def __init__(self, files: TensorFiles) -> None:
        self._files = files
        self._kept: OrderedDict[str, Array] = OrderedDict()
        self._kept_bytes = 0

    def read_rows(self, key: str, start: int, stop: int) -> Array:
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
            return kept[start:stop]
        info = self._files.tensors[key]
        if info.nbytes > _WHOLE:
            return self._read(key, start, stop)
        rows = self._read(key, 0, info.shape[0])
        rows.flags.writeable = False
        self._kept[key] = rows
        self._kept_bytes += rows.nbytes
        while self._kept_bytes > _KEPT:
            self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        return rows[start:stop]

    def _read(self, key: str, start: int, stop: int) -> Array:
        rows = self._files.read_rows(key, start, stop)
        require_finite(key, rows, start, file=self._files.tensors[key].file)
        return rows
