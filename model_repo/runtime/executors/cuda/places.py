"""Where the tokens of each row lie: in pages, or in linear rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from mm2c_runtime.executors.cuda.inputs import StepInputs
from mm2c_runtime.executors.cuda.pages import BlockTables, PagedRows
from mm2c_runtime.executors.cuda.rank_model import RankFacts
from mm2c_runtime.executors.cuda.rows import LinearRows
from mm2c_runtime.step import RowCopy, RowStep


class Places(Protocol):
    """What a step changes of them comes in this order: ``release``, ``move``, ``give``, then ``upload`` and ``bound``.
    Wrong rows, and positions that a row does not have, raise ValueError."""

    caches: list[Tensor]

    def release(self, row: int) -> None:
        """The row holds nothing any more."""

    def move(self, copy: RowCopy) -> None:
        """The target holds what the source held, which means nothing any more."""

    def give(self, step: RowStep) -> None:
        """What the row needs for the step."""

    def upload(self) -> None:
        """Bring the device up to date."""

    def bound(self, first: int, given: StepInputs) -> tuple[Tensor, Sequence[Tensor]]:
        """What a step of the rows in ``given`` is run with: block table and caches. ``first``: the first of them."""

    def clear(self, step: RowStep) -> None:
        """Zero what the row holds."""

    def clear_first(self, rows: int) -> None:
        """Zero what trial steps of up to ``rows`` rows wrote."""

    def close(self) -> None: ...


def unit(program: RankFacts) -> int:
    """Tokens of what the cache is made of: of a page, or of a whole row."""
    return program.kv.page or program.context


def spare(program: RankFacts) -> int:
    """Units beyond those of the rows that decode: a linear row to exchange two others with, or the page of a row that
    stands for an attention group without requests."""
    return 1 if program.kv.page == 0 else int(program.together)


def make_places(program: RankFacts, units: int, device: torch.device, *, dummy: int) -> Places:
    """Of ``units`` and the spare one. ``dummy``: the row that stands for an idle group."""
    kv = program.kv
    if kv.page == 0:
        return LinearRows(kv, units + spare(program), program.context, device)
    rows = program.max_rows + 1 + int(program.together)
    tables = BlockTables(rows, -(-program.context // kv.page), units, kv.page, device)
    if program.together:
        tables.reserve(dummy, units)
    return PagedRows(kv, units + spare(program), tables, device)
