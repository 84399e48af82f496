from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mm2c_runtime.kv import RowPool
from mm2c_runtime.step import RowCopy

ROWS, CONTEXT, BUDGET = 4, 10, 25


class PoolMachine(RuleBasedStateMachine):
    """The pool against a model that keeps each sequence's tokens and carries out every copy on a toy
    cache."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = RowPool(ROWS, CONTEXT, BUDGET)
        self.cache: list[list[int | None]] = [[None] * CONTEXT for _ in range(ROWS + 1)]
        self.row: dict[int, int] = {}
        self.tokens: dict[int, list[int]] = {}
        self.reserved: dict[int, int] = {}
        self.decoding: set[int] = set()
        self.next = 0

    def carry_out(self, copies: list[RowCopy]) -> None:
        for copy in copies:
            self.cache[copy.target][: copy.length] = self.cache[copy.source][: copy.length]
            self.cache[copy.source] = [None] * CONTEXT
            (moved,) = [key for key, row in self.row.items() if row == copy.source]
            assert copy.target not in self.row.values()
            self.row[moved] = copy.target

    @rule(tokens=st.integers(1, CONTEXT + 2))
    def allocate(self, tokens: int) -> None:
        fits = len(self.row) < ROWS and tokens <= CONTEXT and sum(self.reserved.values()) + tokens <= BUDGET
        assert self.pool.fits(tokens) == fits
        if not fits:
            with pytest.raises(ValueError, match="no row for"):
                self.pool.allocate(tokens)
            return
        row = self.pool.allocate(tokens)
        assert row not in self.row.values()
        self.row[self.next], self.tokens[self.next], self.reserved[self.next] = row, [], tokens
        self.next += 1

    @precondition(lambda self: self.row)
    @rule(data=st.data(), count=st.integers(1, 4))
    def write(self, data: st.DataObject, count: int) -> None:
        key = data.draw(st.sampled_from(sorted(self.row)))
        row, tokens = self.row[key], self.tokens[key]
        if len(tokens) + count > self.reserved[key]:
            with pytest.raises(ValueError, match="set aside"):
                self.pool.advance(row, count)
            return
        for _ in range(count):
            self.cache[row][len(tokens)] = token = key * 1000 + len(tokens)
            tokens.append(token)
        self.pool.advance(row, count)

    @precondition(lambda self: self.row.keys() - self.decoding)
    @rule(data=st.data())
    def promote(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.row.keys() - self.decoding)))
        copies = self.pool.promote(self.row[key])
        assert len(copies) <= 2
        self.carry_out(copies)
        self.decoding.add(key)

    @precondition(lambda self: self.row)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.row)))
        row = self.row.pop(key)
        del self.tokens[key], self.reserved[key]
        copy = self.pool.release(row)
        assert copy is None or key in self.decoding
        self.decoding.discard(key)
        self.carry_out([copy] if copy else [])

    @invariant()
    def decoding_rows_are_the_first(self) -> None:
        assert self.pool.decoding == len(self.decoding)
        assert sorted(self.row[key] for key in self.decoding) == list(range(len(self.decoding)))

    @invariant()
    def nothing_is_lost(self) -> None:
        assert len(set(self.row.values())) == len(self.row)
        for key, row in self.row.items():
            assert self.cache[row][: self.pool.length(row)] == self.tokens[key]

    @invariant()
    def accounts_balance(self) -> None:
        assert self.pool.free == ROWS - len(self.row)
        assert self.pool.free_tokens == BUDGET - sum(self.reserved.values()) >= 0


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestRowPool = PoolMachine.TestCase


def test_promotion_in_order_of_arrival_copies_nothing():
    pool = RowPool(3, 8)
    rows = [pool.allocate(8) for _ in range(3)]
    assert [pool.promote(row) for row in rows] == [[], [], []]


def test_overtaking_moves_the_one_in_the_way():
    pool = RowPool(2, 8)
    first, second = pool.allocate(8), pool.allocate(8)
    pool.advance(first, 3)
    pool.advance(second, 5)
    assert pool.promote(second) == [RowCopy(0, 2, 3), RowCopy(1, 0, 5)]
    assert pool.promote(2) == [RowCopy(2, 1, 3)]


def test_release_moves_the_last_decoding_row():
    pool = RowPool(3, 8)
    for row in [pool.allocate(8) for _ in range(3)]:
        pool.advance(row, row + 1)
        pool.promote(row)
    assert pool.release(0) == RowCopy(2, 0, 3)
    assert pool.release(1) is None


def test_wrong_calls_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        RowPool(0, 8)
    pool = RowPool(2, 8)
    row = pool.allocate(4)
    pool.promote(row)
    with pytest.raises(ValueError, match="decodes already"):
        pool.promote(row)
    with pytest.raises(ValueError, match="not allocated"):
        pool.release(1)
    assert not pool.could_fit(9)
    assert pool.could_fit(8)
