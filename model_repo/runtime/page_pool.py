"""KV pages: rows as in ``kv``, whose memory is pages of a common store."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mm2c_runtime.executors.base import KvFacts
from mm2c_runtime.kv import RowPool
from mm2c_runtime.step import RowCopy

if TYPE_CHECKING:  # not at run time: the GPU's checks run where pydantic is not
    from mm2c_runtime.manifest import Limits


@dataclass(slots=True)
class _Pages:
    held: list[int]  # in order of positions
    told: int = 0  # how many of them a step has carried to the executor


class PagePool(RowPool):
    """Places of at most ``rows`` sequences of at most ``context`` tokens, in ``pages`` pages of ``page`` tokens.

    Rows, promotion and moves are ``RowPool``'s; a move costs nothing but an entry of a table. A sequence's
    pages are set aside when it is allocated, as many as its tokens can fill, so that a running sequence never
    waits for one. A page belongs to one row at a time and comes back when that row is released: the page that
    was free for the longest time is given out first."""

    def __init__(self, rows: int, context: int, pages: int, page: int) -> None:
        if pages < 1 or page < 1:
            raise ValueError(f"{pages} pages of {page} tokens: both must be at least 1")
        super().__init__(rows, context, pages * page)
        self.page, self.pages = page, pages
        self._free_pages = deque(range(pages))
        self._held: dict[int, _Pages] = {}

    @property
    def free_tokens(self) -> int:
        """Tokens that the free pages hold."""
        return len(self._free_pages) * self.page

    def fits(self, tokens: int) -> bool:
        return self.free > 0 and self._count(tokens) <= len(self._free_pages) and self.could_fit(tokens)

    def could_fit(self, tokens: int) -> bool:
        return 0 < tokens <= self.context and self._count(tokens) <= self.pages

    def allocate(self, tokens: int) -> int:
        row = super().allocate(tokens)
        self._held[row] = _Pages([self._free_pages.popleft() for _ in range(self._count(tokens))])
        return row

    def take_blocks(self, row: int) -> list[int]:
        """The pages of ``row`` that no step has been told of: all of them the first time, none from then on."""
        self._state(row)
        pages = self._held[row]
        news = pages.held[pages.told :]
        pages.told = len(pages.held)
        return news

    def release(self, row: int) -> RowCopy | None:
        self._state(row)
        self._free_pages.extend(self._held.pop(row).held)
        return super().release(row)

    def _move(self, source: int, target: int) -> RowCopy:
        self._held[target] = self._held.pop(source)
        return super()._move(source, target)

    def _count(self, tokens: int) -> int:
        return -(-tokens // self.page)


def pool_for(limits: Limits, kv: KvFacts, budget: int | None = None) -> RowPool:
    """The pool of an executor's cache; ``budget``: tokens of all rows together, where its rows are linear.
    Pages are as many as the executor made."""
    if kv.page:
        return PagePool(limits.max_rows, limits.context, kv.pages, kv.page)
    return RowPool(limits.max_rows, limits.context, budget)
