from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm2c_runtime.kv import RowPool
from mm2c_runtime.scheduling.allowed import AllowedTokens
from mm2c_runtime.scheduling.scheduler import Outcome, Scheduler
from mm2c_runtime.scheduling.sequence import Sequence
from mm2c_runtime.scheduling.waiting import MAX_OVERTAKEN
from mm2c_runtime.step import RowResult, SamplingParams, StepBatch, StepResult

ROWS, CONTEXT, CHUNK, STOP = 4, 40, 5, 99


def scheduler_of(rows: int, budget: int | None = None) -> Scheduler:
    return Scheduler(RowPool(rows, CONTEXT, budget), prefill_chunk=CHUNK)


class Model:
    """Follows the step protocol as an executor must and checks everything it is told."""

    def __init__(self) -> None:
        self.cache: dict[int, list[int]] = {}
        self.told: dict[int, SamplingParams] = {}

    def run(self, batch: StepBatch, broken: frozenset[int] = frozenset()) -> StepResult:
        for row in batch.released:
            self.told.pop(row, None)
            self.cache.pop(row, None)
        for copy in batch.copies:
            assert len(self.cache[copy.source]) >= copy.length
            self.cache[copy.target] = self.cache[copy.source][: copy.length]
            self.told[copy.target] = self.told[copy.source]
            del self.cache[copy.source]
        if batch.kind == "prefill":
            assert len(batch.rows) == 1
            assert 1 <= batch.rows[0].new_len <= CHUNK
        else:
            assert [row.row for row in batch.rows] == list(range(len(batch.rows)))
        results = []
        for step in batch.rows:
            assert 0 <= step.row <= ROWS  # one spare row
            assert len(step.tokens) == step.new_len
            if step.sampling is not None:
                self.told[step.row] = step.sampling
            seen = self.cache.setdefault(step.row, [])
            assert len(seen) >= step.past_len, "positions that were never written"
            self.cache[step.row] = [*seen[: step.past_len], *step.tokens]
            assert len(self.cache[step.row]) <= CONTEXT
            if step.sample:
                # the seed names the request: the row must still hold that request's parameters
                token = self.told[step.row].seed if step.row not in broken else None
                results.append(RowResult(step.row, token, error=None if token is not None else "broken"))
            else:
                results.append(RowResult(step.row))
        return StepResult(batch.step_id, results)


requests = st.fixed_dictionaries(
    {
        "prompt": st.integers(1, 20),
        "max_tokens": st.integers(1, 20),
        "priority": st.integers(-1, 1),
        "stops": st.booleans(),
    }
)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("add"), requests),
        st.tuples(st.just("step"), st.integers(0, 3)),
        st.tuples(st.just("remove"), st.integers(0, 30)),
        st.tuples(st.just("broken row"), st.integers(0, ROWS - 1)),
        st.tuples(st.just("broken step"), st.none()),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(actions, st.sampled_from([None, 60]))
def test_every_request_ends_exactly_once_and_rows_never_mix(
    plan: list[tuple[str, object]], budget: int | None
) -> None:
    scheduler, model = scheduler_of(ROWS, budget), Model()
    live: dict[str, Sequence] = {}
    number = 0

    def take(outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            sequence = live[outcome.sequence.id]  # a KeyError: it had ended already
            if outcome.token is not None:
                assert outcome.token == sequence.sampling.seed, "another request's row"
            if outcome.ending is not None:
                del live[sequence.id]

    def remove(index: object) -> None:
        assert isinstance(index, int)
        if live:
            sequence = live.pop(sorted(live)[index % len(live)])
            assert scheduler.remove(sequence)
            assert not scheduler.remove(sequence)

    def step(kind: str, value: object) -> bool:
        batch = scheduler.next_batch()
        if batch is None:
            return False
        held = [s.row for s in scheduler if s.row >= 0]
        assert len(held) == len(set(held)), "two owners of a row"
        if kind == "broken step":
            take(scheduler.fail("broken"))
            return True
        with pytest.raises(ValueError, match="in flight"):
            scheduler.next_batch()
        result = model.run(batch, frozenset([value]) if kind == "broken row" else frozenset())  # type: ignore[list-item]
        if not any(action == "broken step" for action, _ in plan):  # then nobody knows
            held = [s.row for s in scheduler if s.row >= 0]
            assert model.cache.keys() <= set(held), "a row keeps its memory after its sequence"
        take(scheduler.apply(result))
        return True

    for kind, value in plan:
        if kind == "add":
            assert isinstance(value, dict)
            number += 1
            sequence = Sequence(
                id=str(number),
                prompt=[number] * value["prompt"],
                max_tokens=value["max_tokens"],
                sampling=SamplingParams(seed=number),
                stop_tokens=frozenset([number]) if value["stops"] else frozenset(),
                priority=value["priority"],
            )
            live[sequence.id] = sequence
            scheduler.add(sequence)
        elif kind == "remove":
            remove(value)
        else:
            step(kind, value)
    for _ in range(number * (20 // CHUNK + 21)):  # chunks and tokens of all of them one after another
        if not step("step", 0):
            break
    assert not live
    assert scheduler.running == scheduler.waiting == 0
    assert scheduler.next_batch() is None


def sequence(name: str, prompt: int = 3, max_tokens: int = 5, **options: object) -> Sequence:
    return Sequence(id=name, prompt=[1] * prompt, max_tokens=max_tokens, **options)  # type: ignore[arg-type]


def drive(scheduler: Scheduler, steps: int) -> list[StepBatch]:
    batches = []
    for _ in range(steps):
        batch = scheduler.next_batch()
        if batch is None:
            break
        batches.append(batch)
        rows = [RowResult(row.row, 7 if row.sample else None) for row in batch.rows]
        scheduler.apply(StepResult(batch.step_id, rows))
    return batches


def test_prefill_and_decode_alternate() -> None:
    scheduler = scheduler_of(ROWS)
    scheduler.add(sequence("a", max_tokens=20))
    drive(scheduler, 2)
    scheduler.add(sequence("long", prompt=20))
    kinds = [batch.kind for batch in drive(scheduler, 8)]
    assert kinds == ["prefill", "decode"] * 4


def test_chunks_cover_the_prompt_and_only_the_last_samples() -> None:
    scheduler = scheduler_of(ROWS)
    scheduler.add(sequence("a", prompt=12, sampling=SamplingParams(repetition_penalty=1.1)))
    rows = [batch.rows[0] for batch in drive(scheduler, 4)]
    assert [(row.past_len, row.new_len, row.sample) for row in rows] == [
        (0, 5, False),
        (5, 5, False),
        (10, 2, True),
        (12, 1, True),
    ]
    assert [row.sampling is not None for row in rows] == [True, False, False, False]
    assert [row.history for row in rows] == [[1] * 12, [], [], [7]]
    assert [row.generated for row in rows] == [[], [], [], [7]]
    assert [row.token_index for row in rows] == [0, 0, 0, 1]


def test_priority_goes_first_but_nobody_waits_for_ever() -> None:
    scheduler = scheduler_of(1)
    scheduler.add(sequence("low", max_tokens=1, priority=5))
    for number in range(2 * MAX_OVERTAKEN):
        scheduler.add(sequence(f"urgent {number}", max_tokens=1))
    drive(scheduler, MAX_OVERTAKEN)
    assert "low" in {s.id for s in scheduler}
    drive(scheduler, 1)
    assert "low" not in {s.id for s in scheduler}


def test_deadlines_and_impossible_requests() -> None:
    scheduler = scheduler_of(1)
    scheduler.add(sequence("running", deadline=5.0))
    scheduler.add(sequence("waiting", deadline=4.0))
    drive(scheduler, 1)
    assert [s.id for s in scheduler.expired(4.5)] == ["waiting"]
    assert [s.id for s in scheduler.expired(6.0)] == ["running"]
    gone = sequence("gone", deadline=7.0)
    scheduler.add(gone)
    scheduler.remove(gone)
    assert scheduler.expired(8.0) == []
    with pytest.raises(ValueError, match="are 41 tokens; at most 40 fit"):
        scheduler.add(sequence("big", prompt=36, max_tokens=5))


def test_a_step_does_not_look_at_everybody_who_waits() -> None:
    looked = [0]

    class Watched(Sequence):
        def __getattribute__(self, name: str) -> object:
            looked[0] += 1
            return super().__getattribute__(name)

    scheduler = scheduler_of(ROWS)
    for number in range(2000):
        deadline = 5000.0 - number if number % 2 else None
        scheduler.add(Watched(str(number), [1], 30, priority=number % 7, deadline=deadline))
    drive(scheduler, 2 * ROWS)
    looked[0] = 0
    for _ in range(10):
        assert scheduler.expired(0.0) == []
        drive(scheduler, 1)
    assert looked[0] < 10 * ROWS * 50


def test_those_who_left_the_queue_take_no_place_in_it() -> None:
    scheduler = scheduler_of(1)
    scheduler.add(sequence("stays", deadline=1.0))
    for number in range(1000):
        gone = sequence(str(number), deadline=1e9)
        scheduler.add(gone)
        scheduler.remove(gone)
    assert len(scheduler._waiting._turns) < 100
    assert len(scheduler._deadlines._order) < 100
    assert len(drive(scheduler, 10)) == 5


def test_allowed_tokens() -> None:
    allowed = AllowedTokens(70, min_tokens=2, stop_tokens=[STOP % 70, 3], bad_words=[(5, 6), (64,)])

    def forbidden(generated: list[int]) -> set[int]:
        mask = allowed.bitmask(generated)
        assert mask is not None
        assert mask.shape == (3,)
        return {token for token in range(70) if not (int(mask[token // 32]) >> (token % 32)) & 1}

    assert forbidden([]) == {29, 3, 64}
    assert forbidden([1, 2]) == {64}
    assert forbidden([1, 5]) == {64, 6}
    many = AllowedTokens(70, bad_words=[(n % 60, 5 + n % 60) for n in range(1000)])
    assert many.bitmask([]) is None
    mask = many.bitmask([1, 2])
    assert mask is not None
    assert int(mask[0]) == np.int32(~(1 << 7))
    assert AllowedTokens(70, min_tokens=1, stop_tokens=[3]).bitmask([9]) is None


def test_a_request_that_ends_before_it_was_moved_is_released_where_it_is() -> None:
    """Its first token is its last, and its prefilled row was to become the first decoding one."""
    scheduler = scheduler_of(ROWS)
    scheduler.add(Sequence("a", [1], 2))
    scheduler.add(Sequence("b", [1] * 6, 1))

    def step() -> StepBatch | None:
        batch = scheduler.next_batch()
        if batch is not None:
            scheduler.apply(StepResult(0, [RowResult(r.row, 7 if r.sample else None) for r in batch.rows]))
        return batch

    while any(sequence.id == "b" for sequence in scheduler):
        assert step() is not None
    scheduler.add(Sequence("c", [1], 1))
    batch = step()
    assert batch is not None
    assert (batch.released, batch.copies) == ([1], [])
