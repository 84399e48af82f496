"""KV pages: no page in two rows, none lost, and what a scheduler tells an executor of them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mm2c_runtime.executors.base import KvFacts
from mm2c_runtime.kv import RowPool
from mm2c_runtime.manifest import Limits
from mm2c_runtime.page_pool import PagePool, pool_for
from mm2c_runtime.scheduling.scheduler import Scheduler
from mm2c_runtime.scheduling.sequence import Sequence
from mm2c_runtime.step import RowCopy, RowResult, SamplingParams, StepBatch, StepResult

ROWS, CONTEXT, PAGE, PAGES = 4, 40, 4, 16


class PagePoolMachine(RuleBasedStateMachine):
    """The pool against a model that keeps each sequence's pages and moves whole rows of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(ROWS, CONTEXT, PAGES, PAGE)
        self.row: dict[int, int] = {}
        self.pages: dict[int, list[int]] = {}
        self.reserved: dict[int, int] = {}
        self.written: dict[int, int] = {}
        self.decoding: set[int] = set()
        self.next = 0

    def carry_out(self, copies: list[RowCopy]) -> None:
        for copy in copies:
            (moved,) = [key for key, row in self.row.items() if row == copy.source]
            assert copy.target not in self.row.values()
            assert copy.length == self.written[moved]
            self.row[moved] = copy.target

    @rule(tokens=st.integers(1, CONTEXT + 2))
    def allocate(self, tokens: int) -> None:
        needed = -(-tokens // PAGE)
        used = sum(-(-size // PAGE) for size in self.reserved.values())
        fits = len(self.row) < ROWS and tokens <= CONTEXT and used + needed <= PAGES
        assert self.pool.fits(tokens) == fits
        assert self.pool.could_fit(tokens) == (tokens <= CONTEXT and needed <= PAGES)
        if not fits:
            with pytest.raises(ValueError, match="no row for"):
                self.pool.allocate(tokens)
            return
        row = self.pool.allocate(tokens)
        assert row not in self.row.values()
        self.row[self.next], self.reserved[self.next], self.written[self.next] = row, tokens, 0
        self.pages[self.next] = []
        self.next += 1

    @precondition(lambda self: self.row)
    @rule(data=st.data())
    def take_blocks(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.row)))
        news = self.pool.take_blocks(self.row[key])
        if self.pages[key]:
            assert news == []
        else:
            assert len(news) == -(-self.reserved[key] // PAGE)
            assert all(0 <= page < PAGES for page in news)
            self.pages[key] = news

    @precondition(lambda self: self.row)
    @rule(data=st.data(), count=st.integers(1, 4))
    def write(self, data: st.DataObject, count: int) -> None:
        key = data.draw(st.sampled_from(sorted(self.row)))
        if self.written[key] + count <= self.reserved[key]:
            self.pool.advance(self.row[key], count)
            self.written[key] += count

    @precondition(lambda self: self.row.keys() - self.decoding)
    @rule(data=st.data())
    def promote(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.row.keys() - self.decoding)))
        self.carry_out(self.pool.promote(self.row[key]))
        self.decoding.add(key)

    @precondition(lambda self: self.row)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.row)))
        row = self.row.pop(key)
        for known in (self.reserved, self.written, self.pages):
            del known[key]
        self.decoding.discard(key)
        copy = self.pool.release(row)
        self.carry_out([copy] if copy else [])
        with pytest.raises(ValueError, match="not allocated"):
            self.pool.take_blocks(ROWS + 1)

    @invariant()
    def no_page_is_in_two_rows(self) -> None:
        told = [page for pages in self.pages.values() for page in pages]
        assert len(told) == len(set(told))

    @invariant()
    def none_is_lost(self) -> None:
        used = sum(-(-size // PAGE) for size in self.reserved.values())
        assert self.pool.free_tokens == (PAGES - used) * PAGE
        assert self.pool.free == ROWS - len(self.row)
        if not self.row:
            row = self.pool.allocate(1)
            assert self.pool.release(row) is None
            rows = [self.pool.allocate(CONTEXT), self.pool.allocate(PAGES * PAGE - CONTEXT)]
            assert sorted(page for row in rows for page in self.pool.take_blocks(row)) == list(range(PAGES))
            for row in rows:
                self.pool.release(row)

    @invariant()
    def rows_know_their_length(self) -> None:
        assert all(self.pool.length(row) == self.written[key] for key, row in self.row.items())


PagePoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPagePool = PagePoolMachine.TestCase


class PagedModel:
    """Keeps tokens in pages and follows a table as an executor does; ``seed`` of its parameters names a row's
    request, whose tokens it must find wherever it looks."""

    def __init__(self) -> None:
        self.store = [[0] * PAGE for _ in range(PAGES)]
        self.table: dict[int, list[int]] = {}
        self.told: dict[int, int] = {}

    def run(self, batch: StepBatch) -> StepResult:
        for row in batch.released:
            self.table.pop(row, None)
            self.told.pop(row, None)
        for copy in batch.copies:
            self.table[copy.target] = self.table.pop(copy.source)
            self.told[copy.target] = self.told.pop(copy.source)
        for step in batch.rows:
            if step.past_len == 0:
                self.table[step.row] = []
                assert step.sampling is not None
                self.told[step.row] = step.sampling.seed
            self.table[step.row] = [*self.table[step.row], *step.blocks]
            table, name = self.table[step.row], self.told[step.row]
            assert len(table) * PAGE >= step.past_len + step.new_len
            seen = [self.store[table[p // PAGE]][p % PAGE] for p in range(step.past_len)]
            assert set(seen) <= {name}, "another request's tokens"
            for position, token in enumerate(step.tokens, step.past_len):
                self.store[table[position // PAGE]][position % PAGE] = token
        held = [page for pages in self.table.values() for page in pages]
        assert len(held) == len(set(held)), "a page in two rows"
        rows = [RowResult(row.row, self.told[row.row] if row.sample else None) for row in batch.rows]
        return StepResult(batch.step_id, rows)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.tuples(st.integers(1, 20), st.integers(1, 20))),
            st.tuples(st.just("step"), st.just((0, 0))),
            st.tuples(st.just("fail"), st.just((0, 0))),
            st.tuples(st.just("remove"), st.tuples(st.integers(0, 30), st.just(0))),
        ),
        max_size=60,
    )
)
def test_every_request_finds_its_own_tokens(plan: list[tuple[str, tuple[int, int]]]) -> None:
    pool = PagePool(ROWS, CONTEXT, PAGES, PAGE)
    scheduler, model = Scheduler(pool, prefill_chunk=5), PagedModel()
    live: list[Sequence] = []

    def step() -> bool:
        batch = scheduler.next_batch()
        if batch is None:
            return False
        for outcome in scheduler.apply(model.run(batch)):
            if outcome.ending is not None:
                live.remove(outcome.sequence)
        return True

    for number, (kind, (first, second)) in enumerate(plan, 1):
        if kind == "add":
            live.append(Sequence(str(number), [number] * first, second, SamplingParams(seed=number)))
            scheduler.add(live[-1])
        elif kind == "step":
            step()
        elif kind == "remove" and live:
            scheduler.remove(live.pop(first % len(live)))
        elif kind == "fail" and (batch := scheduler.next_batch()) is not None:
            model.run(batch)
            for outcome in scheduler.fail("broken"):
                live.remove(outcome.sequence)
    while step():
        pass
    assert not live
    assert pool.free_tokens == PAGES * PAGE


def test_pages_are_told_with_a_rows_first_step_alone() -> None:
    scheduler = Scheduler(PagePool(ROWS, CONTEXT, PAGES, PAGE), prefill_chunk=5)
    scheduler.add(Sequence("a", [1] * 7, 2))
    blocks = []
    while (batch := scheduler.next_batch()) is not None:
        blocks.append(batch.rows[0].blocks)
        rows = [RowResult(row.row, 7 if row.sample else None) for row in batch.rows]
        scheduler.apply(StepResult(0, rows))
    assert blocks == [[0, 1, 2], [], []]


def test_pages_that_were_free_longest_are_used_first() -> None:
    pool = PagePool(ROWS, CONTEXT, PAGES, PAGE)
    first = pool.allocate(8)
    assert pool.take_blocks(first) == [0, 1]
    pool.release(first)
    assert pool.take_blocks(pool.allocate(4)) == [2]


def test_the_pool_of_an_executor() -> None:
    limits = Limits(context=CONTEXT, max_rows=ROWS, prefill_chunk=8)
    linear = pool_for(limits, KvFacts(ROWS + 1, CONTEXT, 100), 25)
    assert type(linear) is RowPool
    assert linear.budget == 25
    assert linear.take_blocks(linear.allocate(3)) == []
    paged = pool_for(limits, KvFacts(ROWS + 1, CONTEXT, 100, PAGE, 3))
    assert isinstance(paged, PagePool)
    assert (paged.budget, paged.context) == (12, CONTEXT)
    assert not paged.could_fit(13)
    with pytest.raises(ValueError, match="0 pages"):
        PagePool(ROWS, CONTEXT, 0, PAGE)
