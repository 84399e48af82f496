"""Rank processes of several attention groups: every group's first rank answers, and a failure stays in its group."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mm2c_runtime.errors import RequestError
from mm2c_runtime.ranks.executor import RankedExecutor
from mm2c_runtime.step import RowStep, StepBatch, StepResult

TOY = (str(Path(__file__).with_name("toy_rank.py")),)
Start = Callable[..., RankedExecutor]


@pytest.fixture
def start() -> Iterator[Start]:
    made: list[RankedExecutor] = []

    def begin(behaviour: str = "", ranks: int = 4, groups: int = 2, **options: Any) -> RankedExecutor:
        executor = RankedExecutor(
            "nowhere", devices=["cpu"] * ranks, groups=groups, backend="gloo", ops=behaviour, command=TOY, **options
        )  # fmt: skip
        made.append(executor)
        return executor

    yield begin
    for executor in made:
        executor.close()


def decode(step_id: int, *masks: Any) -> StepBatch:
    rows = [RowStep(i, [1], 3, 1, sample=True, history=[1], bitmask=mask) for i, mask in enumerate(masks)]
    return StepBatch(step_id, "decode", rows)


def prefill(step_id: int, tokens: int) -> StepBatch:
    return StepBatch(step_id, "prefill", [RowStep(0, [1] * tokens, 0, tokens, sample=True)])


def said(result: StepResult | None) -> list[tuple[int | None, float]]:
    assert result is not None
    assert not result.failure
    return [(row.token, row.logprobs.chosen if row.logprobs else 0.0) for row in result.rows]


@pytest.mark.parametrize("ranks", [2, 4])
def test_each_group_answers_for_itself(start: Start, ranks: int) -> None:
    executor = start(ranks=ranks)
    mask = np.array([7, 1], np.int32)
    first, second = executor.steps([decode(1, None), decode(9, None, mask)])
    assert (said(first), said(second)) == ([(0, 2.5)], [(0, 2.5), (104, 2.5)])  # two rows, all decode
    assert (first.step_id, second.step_id) == (1, 9)  # type: ignore[union-attr]
    first, second = executor.steps([None, prefill(10, 6)])
    assert first is None
    assert said(second) == [(0, 6.0)]
    first, second = executor.steps([decode(2, None), prefill(11, 500)])
    assert said(first) == said(second) == [(0, 8.0)]  # no more than a prefill chunk, whatever was asked
    assert executor.kv.groups == 2
    assert executor.kv.bytes_per_token == 16 * ranks // 2
    assert executor.kv_tokens == 1000 - ranks + 1
    assert executor.forward_seconds == 0.25


def test_logits_come_from_each_groups_first_rank(start: Start) -> None:
    executor = start()
    first, second = executor.forwards([decode(1, None), decode(1, None, None)])
    assert first is not None
    assert second is not None
    assert (first.tolist(), second.tolist()) == ([[0] * 3], [[2] * 3] * 2)
    assert executor.forward(decode(2, None)).tolist() == [[0] * 3]
    assert [row.token for row in executor.step(decode(3, None)).rows] == [0]
    with pytest.raises(ValueError, match="1 batches for 2 attention groups"):
        executor.steps([decode(4, None)])


def test_promised_masks_go_to_their_group(start: Start) -> None:
    executor = start()
    masks: list[Future[Any]] = [Future() for _ in range(3)]
    masks[2].set_result(np.array([-1], np.int32))
    threading.Timer(0.1, lambda: masks[0].set_result(np.array([1], np.int32))).start()
    threading.Timer(0.2, lambda: masks[1].set_result(np.array([3], np.int32))).start()
    first, second = executor.steps([decode(1, None, masks[0]), decode(1, masks[1], masks[2])])
    assert [token for token, _ in said(first)] == [0, 101]
    assert [token for token, _ in said(second)] == [2, 132]
    wrong: Future[Any] = Future()
    wrong.set_exception(RequestError("INVALID_ARGUMENT", "no such grammar"))
    first, second = executor.steps([decode(2, wrong), decode(2, None)])
    assert first is not None
    assert (first.rows, "no such grammar" in first.failure) == ([], True)
    assert said(second) == [(0, 1.5)]
    assert said(executor.steps([decode(3, None), None])[0]) == [(0, 1.5)]


@pytest.mark.parametrize("behaviour", ["value@2", "request@2,3"])
def test_a_group_that_is_still_in_step_fails_alone(start: Start, behaviour: str) -> None:
    executor = start(behaviour)
    executor.steps([decode(1, None), decode(1, None)])
    for step_id in (2, 3):
        first, second = executor.steps([decode(step_id, None), decode(step_id, None)])
        assert said(first) == [(0, 1.5)]
        assert second is not None
        assert (second.step_id, second.rows) == (step_id, [])
        assert second.failure in ("a bad batch", "no room")


@pytest.mark.parametrize(
    ("behaviour", "text"),
    [
        ("value@3", "failed on 1 of 2 ranks: a bad batch"),
        ("die@2", "rank 2 was killed by signal 9"),
        ("lost@1", "the device is lost"),
    ],
)
def test_ranks_out_of_step_end_together(start: Start, behaviour: str, text: str) -> None:
    executor = start(behaviour, step_seconds=2.0)
    executor.steps([decode(1, None), decode(1, None)])
    with pytest.raises(ConnectionError, match=text):
        executor.steps([decode(2, None), decode(2, None)])
