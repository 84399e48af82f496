"""Where the KV cache lies: the pages of every layer on the device, and which of them each row has."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mm2c_runtime.executors.cuda.aligned import ALIGNMENT, aligned_bytes
from mm2c_runtime.executors.cuda.dtypes import KV
from mm2c_runtime.executors.cuda.inputs import StepInputs
from mm2c_runtime.executors.cuda.program import Kv
from mm2c_runtime.step import RowCopy, RowStep


def make_caches(kv: Kv, pages: int, device: torch.device) -> list[Tensor]:
    """k and v of each layer in turn, [pages, page, kv_heads, head_dim], all zero, in one block of memory."""
    shape = (pages, kv.page, kv.kv_heads, kv.head_dim)
    dtype = KV[kv.dtype]
    size = pages * kv.page * kv.kv_heads * kv.head_dim * dtype.itemsize
    apart = size + -size % ALIGNMENT
    block = aligned_bytes(2 * kv.layers * apart, device).zero_()
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


class PagedRows:
    """The caches, and the pages that each row has of them."""

    def __init__(self, kv: Kv, pages: int, tables: BlockTables, device: torch.device) -> None:
        self.caches, self.tables = make_caches(kv, pages, device), tables

    def release(self, row: int) -> None:
        self.tables.release(row)

    def move(self, copy: RowCopy) -> None:
        self.tables.move(copy)

    def give(self, step: RowStep) -> None:
        self.tables.give(step)

    def clear(self, step: RowStep) -> None:
        """Zero what the row holds."""
        clear_pages(self.caches, self.tables.of(step.row))

    def clear_first(self, rows: int) -> None:
        """Zero the page that rows without any name."""
        clear_pages(self.caches, [0])

    def upload(self) -> None:
        self.tables.upload()

    def bound(self, first: int, given: StepInputs) -> tuple[Tensor, Sequence[Tensor]]:
        """The step's rows of the block table, and all caches."""
        return self.tables.device.index_select(0, given.table_row), self.caches

    def close(self) -> None:
        self.caches.clear()
