"""The processes of several ranks: who is asked what, and what happens when one of them goes wrong."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mm2c_runtime.errors import BundleError, RequestError
from mm2c_runtime.ranks.executor import RankedExecutor
from mm2c_runtime.step import RowStep, StepBatch

TOY = (str(Path(__file__).with_name("toy_rank.py")),)
Start = Callable[..., RankedExecutor]


@pytest.fixture
def start() -> Iterator[Start]:
    made: list[RankedExecutor] = []

    def begin(behaviour: str = "", ranks: int = 3, **options: Any) -> RankedExecutor:
        executor = RankedExecutor(
            "nowhere", devices=["cpu"] * ranks, backend="gloo", ops=behaviour, command=TOY, **options
        )
        made.append(executor)
        return executor

    yield begin
    for executor in made:
        executor.close()


def batch(step_id: int, *masks: Any) -> StepBatch:
    rows = [
        RowStep(i, [1], past_len=3, new_len=1, sample=True, history=[1], bitmask=mask)
        for i, mask in enumerate(masks)
    ]
    return StepBatch(step_id, "decode", rows)


def tokens(executor: RankedExecutor, step: StepBatch) -> list[int | None]:
    return [row.token for row in executor.step(step).rows]


def test_rank_0_answers_and_the_smallest_cache_counts(start: Start) -> None:
    executor = start()
    assert tokens(executor, batch(1, None, np.array([7, 1], np.int32))) == [0, 104]
    assert executor.kv_tokens == 998
    assert executor.kv.bytes_per_token == 48
    assert executor.forward_seconds == 0.25
    assert executor.forward(batch(2, None, None)).tolist() == [[0, 0, 0]] * 2


def test_promised_masks_follow_the_step(start: Start) -> None:
    executor = start()
    early: Future[Any] = Future()
    early.set_result(np.array([-1], np.int32))
    late: Future[Any] = Future()
    failed: Future[Any] = Future()
    failed.set_exception(RequestError("INVALID_ARGUMENT", "no such grammar"))

    threading.Timer(0.2, lambda: late.set_result(np.array([1], np.int32))).start()
    assert tokens(executor, batch(1, early, None, late)) == [32, 100, 201]
    with pytest.raises(RequestError, match="no such grammar"):
        executor.step(batch(2, failed))
    assert tokens(executor, batch(3, None)) == [0], "masks were left in the connection"


@pytest.mark.parametrize(
    ("behaviour", "error", "text"),
    [
        ("value", ValueError, "a bad batch"),
        ("request", RequestError, "RESOURCE_EXHAUSTED: no room"),
        ("value@0", ValueError, "a bad batch"),
    ],
)
def test_a_step_that_leaves_the_ranks_in_step_fails_alone(
    start: Start, behaviour: str, error: type[Exception], text: str
) -> None:
    executor = start(behaviour)
    late: Future[Any] = Future()
    late.set_result(np.array([1], np.int32))
    assert tokens(executor, batch(1, None)) == [0]
    for step_id in (2, 3):
        with pytest.raises(error, match=text):
            executor.step(batch(step_id, late))


@pytest.mark.parametrize(
    ("behaviour", "text"),
    [
        ("die@0", "rank 0 was killed by signal 9"),
        ("die@2", "rank 2 was killed by signal 9"),
        ("value@1", "failed on 1 of 3 ranks: a bad batch"),
        ("lost@2", "the device is lost"),
        ("hang@1", "no answer of rank 1 to step 2"),
    ],
)
def test_ranks_out_of_step_end_together(start: Start, behaviour: str, text: str) -> None:
    executor = start(behaviour, step_seconds=2.0)
    processes = executor.processes
    executor.step(batch(1, None))
    with pytest.raises(ConnectionError, match=text):
        executor.step(batch(2, None))
    assert not any(_runs(process) for process in processes)
    with pytest.raises(ConnectionError, match="ended"):
        executor.step(batch(3, None))


def test_a_failed_rank_is_not_waited_for_long(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its neighbours may hang in a collective with it."""
    monkeypatch.setattr("mm2c_runtime.ranks.executor.GRACE_SECONDS", 0.3)
    executor = start("hang@0,1", step_seconds=60.0)
    executor._children.all[2].process.send_signal(signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(ConnectionError, match="rank 2 was killed"):
        executor.step(batch(2, None))
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(("behaviour", "text"), [("refuse", "rank 1: it does not fit"), ("exit", "status 3")])
def test_a_rank_that_cannot_load_refuses_for_all(start: Start, behaviour: str, text: str) -> None:
    with pytest.raises(BundleError, match=text):
        start(behaviour)


def test_close_ends_the_processes_and_may_be_repeated(start: Start) -> None:
    executor = start()
    processes = executor.processes
    executor.close()
    executor.close()
    assert not any(_runs(process) for process in processes)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
