"""Where the KV cache lies: the pages of every layer on the device, and which of them each row has."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mm2c_runtime.executors.cuda.program import Kv
from mm2c_runtime.step import RowCopy, RowStep

_ALIGNMENT = 256  # bytes between the beginnings of two caches
_DTYPES = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}


def make_caches(kv: Kv, pages: int, device: torch.device) -> list[Tensor]:
    """k and v of each layer in turn, [pages, page, kv_heads, head_dim], all zero, in one block of memory."""
    shape = (pages, kv.page, kv.kv_heads, kv.head_dim)
    dtype = _DTYPES[kv.dtype]
    size = pages * kv.page * kv.kv_heads * kv.head_dim * dtype.itemsize
    apart = size + -size % _ALIGNMENT
    block = torch.zeros(2 * kv.layers * apart, dtype=torch.uint8, device=device)
    return [block[n * apart : n * apart + size].view(dtype).view(shape) for n in range(2 * kv.layers)]


def clear_pages(caches: Sequence[Tensor], pages: Sequence[int]) -> None:
    """Zero them: a NaN left behind would spoil the next row, for a position that is masked still enters a weighted
    sum with weight zero."""
    for cache in caches:
        raw = cache.view(torch.uint8)
        for page in pages:
            raw[page].zero_()


class BlockTables:
    """The pages of every row, on the host and on the device: i32[rows, width], position p of a row in entry
    p // page. Entries that no step reads hold any page that there is.

    The host's side is pinned and copied without waiting: it may change again once the step has ended.
    """

    def __init__(self, rows: int, width: int, pages: int, page: int, device: torch.device) -> None:
        self.rows, self.width, self.pages, self.page = rows, width, pages, page
        self.device = torch.zeros((rows, width), dtype=torch.int32, device=device)
        self._pinned = torch.zeros((rows, width), dtype=torch.int32, pin_memory=device.type == "cuda")
        self._host = self._pinned.numpy()  # the same memory
        self._length = np.zeros(rows, np.int64)  # entries that mean something
        self._changed: set[int] = set()

    def release(self, row: int) -> None:
        """The row has no pages any more."""
        self._check(row)
        self._length[row] = 0

    def reserve(self, row: int, page: int) -> None:
        """The row has this page alone, of which the pool knows nothing."""
        self._host[row] = page
        self._changed.add(row)

    def move(self, copy: RowCopy) -> None:
        """The target has the source's pages, the source none."""
        self._check(copy.source)
        self._check(copy.target)
        length = self._length[copy.source]
        self._host[copy.target, :length] = self._host[copy.source, :length]
        self._length[copy.target], self._length[copy.source] = length, 0
        self._changed.add(copy.target)

    def give(self, step: RowStep) -> None:
        """The row's new pages; a step from position 0 starts it anew. Raises ValueError for a page or a row that is
        not there, and for positions that no page of the row holds."""
        self._check(step.row)
        length = 0 if step.past_len == 0 and step.blocks else int(self._length[step.row])
        if step.blocks:
            if not 0 <= min(step.blocks) <= max(step.blocks) < self.pages:
                raise ValueError(f"row {step.row}: pages {step.blocks}, there are {self.pages}")
            end = length + len(step.blocks)
            if end > self.width:
                raise ValueError(f"row {step.row}: {end} pages, a full row has {self.width}")
            self._host[step.row, length:end] = step.blocks
            self._length[step.row] = length = end
            self._changed.add(step.row)
        if step.past_len + step.new_len > length * self.page:
            raise ValueError(
                f"row {step.row}: {step.past_len} + {step.new_len} tokens in {length} pages of {self.page}"
            )

    def of(self, row: int) -> list[int]:
        """The pages of a row."""
        return [int(page) for page in self._host[row, : self._length[row]]]

    def upload(self) -> None:
        """Bring the device's side up to date."""
        for row in self._changed:
            self.device[row].copy_(self._pinned[row], non_blocking=True)
        self._changed.clear()

    def _check(self, row: int) -> None:
        if not 0 <= row < self.rows:
            raise ValueError(f"row {row} of {self.rows}")
