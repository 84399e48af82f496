"""Where the KV cache of linear rows lies: a row of every layer holds a whole sequence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mm2c_runtime.executors.cuda.aligned import ALIGNMENT, aligned_bytes
from mm2c_runtime.executors.cuda.dtypes import KV
from mm2c_runtime.executors.cuda.inputs import StepInputs
from mm2c_runtime.executors.cuda.program import Kv
from mm2c_runtime.step import RowCopy, RowStep


class LinearRows:
    """Caches [rows, kv_heads, context, head_dim]: k and v of each layer in turn, all zero, in one block of memory.

    Copies of rows are enqueued on the current stream when they are told.
    """

    def __init__(self, kv: Kv, rows: int, context: int, device: torch.device) -> None:
        dtype = KV[kv.dtype]
        shape = (rows, kv.kv_heads, context, kv.head_dim)
        count = rows * kv.kv_heads * context * kv.head_dim
        apart = -(-count * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        block = aligned_bytes(2 * kv.layers * apart, device).view(2 * kv.layers, apart)
        block.zero_()
        self.rows, self.context = rows, context
        self._all = block.view(dtype)[:, :count].unflatten(1, shape)  # caches first
        self.caches = list(self._all.unbind(0))

    def release(self, row: int) -> None:
        self._check(row)

    def move(self, copy: RowCopy) -> None:
        """The target has the source's tokens."""
        self._check(copy.source)
        self._check(copy.target)
        if not 0 <= copy.length <= self.context:
            raise ValueError(f"{copy.length} tokens of row {copy.source}: a row has {self.context}")
        self._all[:, copy.target, :, : copy.length].copy_(self._all[:, copy.source, :, : copy.length])

    def give(self, step: RowStep) -> None:
        """Raises ValueError for a row that is not there, and for positions that it does not have."""
        self._check(step.row)
        if step.past_len + step.new_len > self.context:
            raise ValueError(
                f"row {step.row}: {step.past_len} + {step.new_len} tokens in {self.context} places"
            )

    def clear(self, step: RowStep) -> None:
        """Zero what the row holds: a NaN left behind would spoil the next one, for a position that is masked still
        enters a weighted sum with weight zero."""
        self._all[:, step.row, :, : step.past_len + step.new_len].zero_()

    def clear_first(self, rows: int) -> None:
        """Zero what steps of up to ``rows`` rows from position 0 wrote to their first token."""
        self._all[:, :rows, :, :1].zero_()

    def upload(self) -> None:
        pass

    def bound(self, first: int, given: StepInputs) -> tuple[Tensor, Sequence[Tensor]]:
        """Of the rows from ``first`` on."""
        rows = len(given.past)
        return given.table_row, [cache[first : first + rows] for cache in self.caches]

    def close(self) -> None:
        self.caches.clear()
        self._all = torch.empty(0)

    def _check(self, row: int) -> None:
        if not 0 <= row < self.rows:
            raise ValueError(f"row {row} of {self.rows}")
