"""KV cache of linear rows: per rank, layer and side one block [rows, kv_heads, context, head_dim]."""

from __future__ import annotations

import mmap

import numpy as np
from numpy.typing import NDArray

from mm2c_runtime.errors import BundleError
from mm2c_runtime.manifest import KvSpec
from mm2c_runtime.step import RowCopy

_MAP_NORESERVE = 0x4000  # Linux; the mmap module has no name for it
_PAGE = mmap.PAGESIZE


class LinearCache:
    """One rank's cache. The address space is reserved at once, memory is committed as positions are written.

    ``blocks[name]`` is f32[rows, kv_heads, context, head_dim] for names ``k_cache.{l}`` and ``v_cache.{l}``.
    """

    def __init__(self, spec: KvSpec, rows: int, context: int) -> None:
        if spec.dtype != "f32":
            raise BundleError(
                f"the CPU executor keeps its KV cache in f32, this bundle asks for {spec.dtype}",
                remedy="rebuild with `--engine onnxruntime`",
            )
        shape = (rows, spec.kv_heads, context, spec.head_dim)
        names = [f"{side}_cache.{layer}" for layer in range(spec.layers) for side in "kv"]
        block = -(-4 * int(np.prod(shape, dtype=np.int64)) // _PAGE) * _PAGE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        try:
            self._memory = mmap.mmap(-1, max(block * len(names), _PAGE), flags=flags)
        except (OSError, ValueError) as error:
            raise BundleError(
                f"cannot reserve {block * len(names) / 2**30:.1f} GiB for the KV cache: {error}",
                remedy="serve with fewer rows or a shorter context",
            ) from error
        count = int(np.prod(shape, dtype=np.int64))
        self.blocks: dict[str, NDArray[np.float32]] = {
            name: np.frombuffer(self._memory, np.float32, count, index * block).reshape(shape)
            for index, name in enumerate(names)
        }
        self.rows, self.context, self._block = rows, context, block
        self.bytes_per_token = 4 * spec.kv_heads * spec.head_dim * len(names)

    def slices(self, first: int, count: int) -> dict[str, NDArray[np.float32]]:
        """By name, rows ``first`` … ``first + count - 1`` of each block."""
        return {name: block[first : first + count] for name, block in self.blocks.items()}

    def copy(self, move: RowCopy) -> None:
        """Copy the first ``move.length`` positions of every layer."""
        for block in self.blocks.values():
            block[move.target, :, : move.length] = block[move.source, :, : move.length]

    def drop(self, row: int) -> None:
        """Give the memory of a row that holds no sequence back; it reads as zeros from then on. Pages that it
        shares with a neighbour stay."""
        for index, block in enumerate(self.blocks.values()):
            begin = index * self._block + row * block[0].nbytes
            first = -(-begin // _PAGE) * _PAGE
            size = (begin + block[0].nbytes) // _PAGE * _PAGE - first
            if size > 0:
                self._memory.madvise(mmap.MADV_DONTNEED, first, size)

    def clear(self, row: int, length: int) -> None:
        """Zero the first ``length`` positions: a NaN left behind would spoil the row's next user, because a
        masked position still enters the weighted sum with weight zero."""
        for block in self.blocks.values():
            block[row, :, :length] = 0.0
