"""Reads every part of the checkpoint once for all that want some of it, and checks what it read."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mm2c.weights.finite import require_finite
from mm2c.weights.needs import Rows
from mm2c.weights.shards import Shards, Stored
from mm2c_runtime.weights.dtypes import NUMPY

Array = np.ndarray[Any, Any]
Block = tuple[str, int]  # a tensor's key and the number of its block of rows
WHOLE = 24 << 20  # bytes: smaller tensors are one block
BLOCK = 8 << 20  # bytes of a block of larger ones, about
KEPT = 160 << 20  # bytes of blocks that wait for a later use, at most; those that went are read again


def rows_of_block(info: Stored) -> int:
    """How many rows each block of the tensor has, the last one fewer."""
    rows = max(info.shape[0], 1) if info.shape else 1
    if info.nbytes <= WHOLE:
        return rows
    return max(1, BLOCK // max(info.nbytes // rows, 1))


def blocks_of(rows: Rows, tensors: Mapping[str, Stored]) -> list[Block]:
    """The blocks that hold these rows."""
    found: list[Block] = []
    for key, (start, stop) in rows.items():
        step = rows_of_block(tensors[key])
        found.extend((key, number) for number in range(start // step, -(-stop // step)))
    return found


class _Held:
    """One block: ``uses`` counts the units that still want it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.uses = 0
        self.rows: Array | None = None
        self.memory: Array | None = None


class Sources:
    """Blocks of tensors, each read by the first unit that wants it and dropped behind the last.

    Units announce their blocks (``expect``) before any of them runs, and give them back (``release``). Blocks that
    a unit announced later will want as well stay, up to ``KEPT`` bytes.
    """

    def __init__(self, tensors: Mapping[str, Stored], shards: Shards) -> None:
        self._tensors, self._shards = tensors, shards
        self._held: dict[Block, _Held] = {}
        self._waiting: OrderedDict[Block, int] = OrderedDict()  # unused now, wanted later: bytes
        self._waiting_bytes = 0
        self._free: dict[int, list[Array]] = {}
        self._free_bytes = 0
        self._lock = threading.Lock()

    def expect(self, blocks: Iterable[Block]) -> None:
        with self._lock:
            for block in blocks:
                self._held.setdefault(block, _Held()).uses += 1
                self._waiting_bytes -= self._waiting.pop(block, 0)

    def announce(self, blocks: Iterable[Block]) -> None:
        """Have the kernel read ahead what is not here yet."""
        for block in blocks:
            held = self._held.get(block)
            if held is None or held.rows is None:
                info, first, count = self._bounds(block)
                row = info.nbytes // max(info.shape[0], 1)
                self._shards.announce(info.file, info.offset + first * row, count * row)

    def release(self, blocks: Iterable[Block], wanted_later: Iterable[str] = ()) -> None:
        """A unit is done with its blocks. ``wanted_later``: keys that units will want which are not announced."""
        later = set(wanted_later)
        with self._lock:
            for block in blocks:
                held = self._held[block]
                held.uses -= 1
                if held.uses:
                    continue
                if held.memory is not None and block[0] in later:
                    self._waiting[block] = held.memory.nbytes
                    self._waiting_bytes += held.memory.nbytes
                else:
                    self._drop(block)
            while self._waiting_bytes > KEPT:
                block, size = self._waiting.popitem(last=False)
                self._waiting_bytes -= size
                self._drop(block)

    def read_rows(self, key: str, start: int, stop: int) -> Array:
        """Rows of a tensor out of announced blocks; a view where they lie in one."""
        step = rows_of_block(self._tensors[key])
        first, last = start // step, max(-(-stop // step), start // step + 1)
        if last - first == 1:
            return self._block((key, first))[start - first * step : stop - first * step]
        info = self._tensors[key]
        out = np.empty((stop - start, *info.shape[1:]), NUMPY[info.dtype])
        for number in range(first, last):
            low, high = max(start, number * step), min(stop, (number + 1) * step)
            rows = self._block((key, number))[low - number * step : high - number * step]
            out[low - start : high - start].view(np.uint8)[...] = rows.view(np.uint8)
        return out

    def _block(self, block: Block) -> Array:
        with self._lock:
            held = self._held[block]
        with held.lock:
            if held.rows is None:
                info, first, count = self._bounds(block)
                shape = (count, *info.shape[1:])
                size = count * (info.nbytes // max(info.shape[0], 1))
                memory = self._memory(size)
                rows = read_checked(self._shards, block[0], info, first, memory[:size], shape)
                held.memory, held.rows = memory, rows
            return held.rows

    def _bounds(self, block: Block) -> tuple[Stored, int, int]:
        """The tensor, the block's first row and how many it has."""
        info = self._tensors[block[0]]
        step = rows_of_block(info)
        return info, block[1] * step, min(step, info.shape[0] - block[1] * step)

    def _memory(self, size: int) -> Array:
        """Fresh pages cost more than reading into them: buffers are used again."""
        with self._lock:
            if free := self._free.get(size):
                self._free_bytes -= size
                return free.pop()
        return np.empty(size, np.uint8)

    def _drop(self, block: Block) -> None:
        held = self._held.pop(block)
        if held.memory is not None and self._free_bytes + held.memory.nbytes <= KEPT // 2:
            self._free.setdefault(held.memory.nbytes, []).append(held.memory)
            self._free_bytes += held.memory.nbytes


def read_checked(
    shards: Shards, key: str, info: Stored, first: int, memory: Array, shape: tuple[int, ...]
) -> Array:
    """Rows from ``first`` on, read into ``memory`` u8[their bytes]; UserError where one is not finite."""
    row = info.nbytes // max(info.shape[0], 1)
    shards.read(info.file, info.offset + first * row, memory.data)
    rows = memory.view(NUMPY[info.dtype]).reshape(shape)
    require_finite(key, rows, first, file=info.file)
    rows.flags.writeable = False
    return rows


class Unshared:
    """Rows read for one use: of tensors too large to be kept, whose every row a box needs a little of."""

    def __init__(self, tensors: Mapping[str, Stored], shards: Shards) -> None:
        self._tensors, self._shards = tensors, shards

    def read_rows(self, key: str, start: int, stop: int) -> Array:
        info = self._tensors[key]
        shape = (stop - start, *info.shape[1:])
        memory = np.empty(math.prod(shape) * NUMPY[info.dtype].itemsize, np.uint8)
        return read_checked(self._shards, key, info, start, memory, shape)
