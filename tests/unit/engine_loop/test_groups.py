"""Several attention groups in one engine: who gets a request, joint steps, and failures that stay where they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_engine import END, Listener, ToyExecutor, toy_preparer, toy_tokenizer

from mm2c_runtime.detokenizer import TokenBytes
from mm2c_runtime.engine import Engine
from mm2c_runtime.kv import RowPool
from mm2c_runtime.manifest import Limits
from mm2c_runtime.memory import asked_tokens, kv_budget
from mm2c_runtime.requests import parse_request
from mm2c_runtime.scheduling.groups import Groups
from mm2c_runtime.scheduling.sequence import Sequence as Request
from mm2c_runtime.step import RowResult, StepBatch, StepResult

Batches = Sequence["StepBatch | None"]


class ToyGroups:
    """A toy executor for each group; what one of them raises fails in that group, ``explode`` in all."""

    def __init__(
        self, groups: int = 2, explode: Callable[[Batches], None] | None = None, **options: Any
    ) -> None:
        self.all = [ToyExecutor(**options) for _ in range(groups)]
        self.rows, self.context = self.all[0].rows, self.all[0].context
        self.explode, self.joint = explode, []

    def steps(self, batches: Batches) -> list[StepResult | None]:
        assert any(batch is not None for batch in batches)
        self.joint.append(
            ["-" if batch is None else batch.kind[0] + str(len(batch.rows)) for batch in batches]
        )
        if self.explode is not None:
            self.explode(batches)
        results: list[StepResult | None] = []
        for executor, batch in zip(self.all, batches, strict=True):
            try:
                results.append(None if batch is None else executor.step(batch))
            except ValueError as error:
                assert batch is not None
                results.append(StepResult(batch.step_id, [], failure=str(error)))
        return results

    def close(self) -> None:
        for executor in self.all:
            executor.close()


@pytest.fixture
def make() -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def build(executor: ToyGroups, kv_tokens: int | None = None) -> Engine:
        pools = [RowPool(executor.rows, executor.context, kv_tokens) for _ in executor.all]
        groups = Groups.of(pools, prefill_chunk=8)
        preparer = toy_preparer(executor.context, kv_tokens)
        engines.append(Engine(executor, groups, preparer, TokenBytes(toy_tokenizer())))
        return engines[-1]

    yield build
    for engine in engines:
        engine.close()


def ids(text: str) -> list[int]:
    return list(toy_tokenizer().encode(text, add_special_tokens=False).ids)


def ask(engine: Engine, listener: Listener, name: str, prompt: str, **options: Any) -> None:
    engine.submit(name, parse_request({"text_input": prompt, "stream": True, **options}), listener)


def test_answers_do_not_depend_on_the_group_and_groups_fill_evenly(make: Callable[..., Engine]) -> None:
    scripts = {tuple(ids(f"say {n}")): ids(f"the answer is {n}" * 2) for n in range(7)}
    executor = ToyGroups(3, rows=2, scripts=scripts, delay=0.002)
    engine, listener = make(executor), Listener()
    for n in range(7):  # six places; the seventh waits for one
        ask(engine, listener, str(n), f"say {n}")
    for n in range(7):
        assert listener.wait(str(n))["finish_reason"] == "stop"
        assert listener.tokens(str(n)) == [*ids(f"the answer is {n}" * 2), END]
    assert all(any(step[group] == "d2" for step in executor.joint) for group in range(3))
    assert any("p" in "".join(step) and "d" in "".join(step) for step in executor.joint), "nobody ran beside"
    stats = engine.stats()
    assert (stats["running"], stats["waiting"]) == (0, 0)
    assert stats["groups"] == [{"running": 0, "kv_tokens_free": 2 * executor.context}] * 3
    assert stats["steps"] == len(executor.joint)
    assert max(int(rows) for rows in stats["rows_histogram"]) > 2
    assert stats["generated_tokens"] == sum(len(listener.tokens(str(n))) for n in range(7))


def test_seeded_draws_do_not_depend_on_the_group(make: Callable[..., Engine]) -> None:
    engine, listener = make(ToyGroups(2, delay=0.001)), Listener()
    for name in "abcd":
        ask(engine, listener, name, "draw", temperature=1.0, seed=7, max_tokens=12)
    assert len({tuple(listener.tokens(name)) for name in "abcd" if listener.wait(name)}) == 1


def test_a_group_that_fails_ends_its_own_requests_alone(make: Callable[..., Engine]) -> None:
    executor = ToyGroups(2, delay=0.002)
    engine, listener = make(executor), Listener()
    for name in "ab":
        ask(engine, listener, name, f"go {name}", max_tokens=60, ignore_eos=True)
    listener.wait("a", ("delta",))
    listener.wait("b", ("delta",))

    def refuse(batch: StepBatch) -> None:
        raise ValueError("one group only")

    executor.all[0].explode = refuse
    ends = {name: listener.wait(name) for name in "ab"}
    (failed,) = [name for name in "ab" if ends[name]["type"] == "error"]
    assert "the step failed: one group only" in ends[failed]["message"]
    (kept,) = {"a", "b"} - {failed}
    assert ends[kept]["num_output_tokens"] == 60
    executor.all[0].explode = None
    ask(engine, listener, "c", "again", max_tokens=3, ignore_eos=True)
    assert listener.wait("c")["num_output_tokens"] == 3


@pytest.mark.parametrize(("fault", "code"), [(RuntimeError("all"), "INTERNAL"), (EOFError(), "UNAVAILABLE")])
def test_a_joint_step_that_fails_ends_all_that_took_part(
    make: Callable[..., Engine], fault: Exception, code: str
) -> None:
    executor = ToyGroups(2, delay=0.002)
    engine, listener = make(executor), Listener()
    for name in "ab":
        ask(engine, listener, name, "go", max_tokens=100)
    for name in "ab":
        listener.wait(name, ("delta",))

    def broken(batches: Batches) -> None:
        executor.explode = None
        raise fault

    executor.explode = broken
    for name in "ab":
        assert listener.wait(name)["code"] == code
    assert engine.alive == (code == "INTERNAL")


def test_cancels_and_timeouts_find_the_group(make: Callable[..., Engine]) -> None:
    engine, listener = make(ToyGroups(2, rows=1, delay=0.005)), Listener()
    for name in "abc":
        ask(engine, listener, name, f"long {name}", max_tokens=100, ignore_eos=True)
    ask(engine, listener, "d", "late", max_tokens=100, timeout=0.05)
    listener.wait("a", ("delta",))
    listener.wait("b", ("delta",))
    assert listener.wait("d")["code"] == "CANCELLED"
    engine.cancel("b")
    assert listener.wait("b")["finish_reason"] == "cancelled"
    assert listener.wait("c", ("delta",))
    for name in "ac":
        engine.cancel(name)
        listener.wait(name)
    assert [group["running"] for group in engine.stats()["groups"]] == [0, 0]


class Follower:
    """Remembers what each group's cache rows hold, and answers every row that samples with its sum."""

    def __init__(self, groups: int) -> None:
        self.rows: list[dict[int, list[int]]] = [{} for _ in range(groups)]

    def run(self, batches: Batches) -> list[StepResult | None]:
        results: list[StepResult | None] = []
        for cache, batch in zip(self.rows, batches, strict=True):
            if batch is None:
                results.append(None)
                continue
            for row in batch.released:
                cache.pop(row, None)
            for copy in batch.copies:
                cache[copy.target] = cache.pop(copy.source)[: copy.length]
            rows = []
            for step in batch.rows:
                held = cache.setdefault(step.row, [])
                del held[step.past_len :]
                assert len(held) == step.past_len
                held += step.tokens
                rows.append(RowResult(step.row, token=sum(held) % 97 if step.sample else None))
            results.append(StepResult(batch.step_id, rows))
        return results


@settings(max_examples=60, deadline=None)
@given(
    groups=st.integers(1, 4),
    sizes=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 12)), max_size=20),
    cancels=st.dictionaries(st.integers(0, 40), st.integers(0, 19), max_size=6),
)
def test_every_request_gets_its_own_tokens(
    groups: int, sizes: list[tuple[int, int]], cancels: dict[int, int]
) -> None:
    schedulers = Groups.of([RowPool(2, 40, 50) for _ in range(groups)], prefill_chunk=5)
    model = Follower(groups)
    requests = [
        Request(str(n), [(7 * n + place) % 50 for place in range(prompt)], tokens)
        for n, (prompt, tokens) in enumerate(sizes)
    ]
    cancelled = set()
    ended = set()
    for request in requests:
        schedulers.add(request)
    for turn in range(2000):
        if (which := cancels.get(turn)) is not None and which < len(requests):
            request = requests[which]
            assert schedulers.remove(request) == (request not in ended and request not in cancelled)
            cancelled.add(request)
        batches = schedulers.next_batches()
        if all(batch is None for batch in batches):
            break
        for outcome in schedulers.apply(model.run(batches)):
            if outcome.ending is not None:
                ended.add(outcome.sequence)
    for request in requests:
        assert request in ended or request in cancelled
        if request in ended:
            seen = list(request.prompt)
            for token in request.generated:
                assert token == sum(seen) % 97
                seen.append(token)
            assert len(request.generated) == request.max_tokens
    assert schedulers.report()["waiting"] == schedulers.report()["running"] == 0
    assert all(group["kv_tokens_free"] == 50 for group in schedulers.report()["groups"])


def test_the_least_loaded_group_that_can_admit() -> None:
    schedulers = Groups.of([RowPool(2, 40, 40) for _ in range(2)], prefill_chunk=50)
    model = Follower(2)
    large, small, next_one = Request("l", [1] * 20, 18), Request("s", [1], 6), Request("n", [1] * 10, 20)
    for request in (large, small, next_one):
        schedulers.add(request)
    schedulers.apply(model.run(schedulers.next_batches()))
    assert [group["running"] for group in schedulers.report()["groups"]] == [1, 1]
    schedulers.apply(model.run(schedulers.next_batches()))
    # Both have one; only the small one's group has room for thirty tokens more.
    assert [group["running"] for group in schedulers.report()["groups"]] == [1, 2]
    assert schedulers.report()["waiting"] == 0


def test_groups_that_decode_prefill_together() -> None:
    """A step with a prefill in it is slow for all: no two of them follow each other while everybody could decode."""
    schedulers = Groups.of([RowPool(3, 100) for _ in range(2)], prefill_chunk=5)
    model, kinds = Follower(2), []
    for n in range(2):
        schedulers.add(
            Request(f"short {n}", [1] * (1 + 5 * n), 60)
        )  # the second one's prefill takes a step more
    for n in range(4):
        schedulers.add(Request(f"long {n}", [2] * 40, 3))
    for _ in range(40):
        batches = schedulers.next_batches()
        busy = [scheduler.decoding for scheduler in schedulers.all]
        kinds.append((all(busy), [batch.kind for batch in batches if batch is not None]))
        schedulers.apply(model.run(batches))
    everybody = [said for all_busy, said in kinds if all_busy]
    assert sum("prefill" in said for said in everybody) >= 16
    assert any(said == ["prefill", "prefill"] for said in everybody)
    for before, after in pairwise(everybody):
        assert not ("prefill" in before and "prefill" in after)


def test_a_group_without_a_result_is_not_left_in_the_middle_of_a_step() -> None:
    schedulers = Groups.of([RowPool(2, 40) for _ in range(2)], prefill_chunk=5)
    request = Request("r", [1, 2], 3)
    schedulers.add(request)
    schedulers.next_batches()
    (outcome,) = schedulers.apply([None, None])
    assert (outcome.sequence, outcome.ending) == (request, "error")
    with pytest.raises(ValueError, match="no group"):
        Groups([])


def test_a_budget_is_cut_for_the_groups() -> None:
    limits = Limits(context=32, max_rows=2, prefill_chunk=8)
    assert kv_budget(None, limits, {}, groups=3) == 64  # every row of a group full
    assert kv_budget(90, limits, {}, groups=3) == 30
    assert kv_budget(91, limits, {}, groups=3) == 31
    assert asked_tokens(None, limits, {"MM2C_KV_TOKENS": "1000"}, groups=3) == 64
