"""Faults of one request, of its listener, or of the loop itself: whoever waits is told, and nobody else hurt."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from typing import Any

import pytest
from toy_engine import Listener, ToyExecutor, toy_engine

from mm2c_runtime.answer import Answer
from mm2c_runtime.bundle import Bundle
from mm2c_runtime.completion import CompletionDelta, Stream
from mm2c_runtime.engine import Engine
from mm2c_runtime.errors import RequestError
from mm2c_runtime.requests import parse_request
from mm2c_runtime.scheduling.scheduler import Scheduler


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = toy_engine(ToyExecutor(rows=2, delay=0.003))
    yield made
    made.close()


def ask(engine: Engine, on_event: Any, request_id: str, **options: Any) -> None:
    fields = {"text_input": f"p{request_id}", "stream": True, "ignore_eos": True, **options}
    engine.submit(request_id, parse_request(fields), on_event)


class Broken(Listener):
    """Raises what it is told to on every event, after taking it."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def __call__(self, event: dict[str, Any]) -> None:
        super().__call__(event)
        raise self.error


@pytest.mark.parametrize("error", [OSError("gone"), SystemExit(3)])
def test_listeners_that_fail_at_the_end_hide_nothing_from_the_others(
    engine: Engine, error: BaseException
) -> None:
    broken, listener = Broken(error), Listener()
    ask(engine, broken, "a")
    ask(engine, broken, "b")
    ask(engine, listener, "c")
    ask(engine, listener, "d", max_tokens=3)
    assert listener.wait("d")["finish_reason"] == "length"  # the loop goes on
    engine.close()
    assert listener.wait("c")["code"] == "UNAVAILABLE"
    assert all(events[-1]["type"] in ("finish", "error") for events in broken.events.values())


def test_a_loop_that_fails_in_the_middle_of_a_step_tells_everybody(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler has a step in flight then and takes no request back."""
    listener = Listener()
    for name in "abc":
        ask(engine, listener, name)
    listener.wait("a", ("delta",))

    def landed(self: object) -> Any:
        raise MemoryError("no more")

    monkeypatch.setattr(Scheduler, "_landed", landed)
    for name in "abc":
        assert listener.wait(name)["code"] == "UNAVAILABLE"
        assert "the engine has failed" in listener.wait(name)["message"]
    assert not engine.alive
    assert engine.in_flight == 0
    with pytest.raises(RequestError, match="UNAVAILABLE"):
        ask(engine, listener, "d")


@pytest.mark.parametrize("method", ["add", "finish"])
def test_an_answer_that_cannot_be_made_ends_its_request_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    original = getattr(Answer, method)

    def fail(self: Answer, *arguments: Any, **more: Any) -> Any:
        if self.id == "bad":
            raise KeyError("a bug in a parser")
        return original(self, *arguments, **more)

    monkeypatch.setattr(Answer, method, fail)
    listener = Listener()
    ask(engine, listener, "good", max_tokens=30)
    ask(engine, listener, "bad", max_tokens=30)
    if method == "finish":
        listener.wait("bad", ("delta",))
        engine.cancel("bad")
    assert listener.wait("bad")["code"] == "INTERNAL"
    assert "a bug in a parser" in listener.wait("bad")["message"]
    assert listener.wait("good")["finish_reason"] == "length"
    assert engine.alive


def bundle_of(engine: Engine) -> Bundle:
    bundle = Bundle.__new__(Bundle)
    bundle.engine, bundle._ids = engine, iter(range(9))  # type: ignore[assignment]
    return bundle


def idle(engine: Engine) -> bool:
    end = time.monotonic() + 2
    while engine.in_flight:
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def test_a_stream_that_nobody_iterates_frees_its_row(engine: Engine) -> None:
    bundle = bundle_of(engine)
    for prompt in "xyz":  # three of two rows, none of them kept
        bundle.generate(prompt=prompt, stream=True, ignore_eos=True)
    gc.collect()
    assert idle(engine)
    assert engine.stats()["generated_tokens"] < 3 * 120
    kept = bundle.generate(prompt="p", stream=True, ignore_eos=True)
    assert engine.in_flight == 1
    kept.close()
    assert idle(engine)
    assert list(kept) == []


def test_a_stream_may_be_left_early_or_read_to_its_end(engine: Engine) -> None:
    bundle = bundle_of(engine)
    for _ in bundle.generate(prompt="p", stream=True, ignore_eos=True):
        break
    assert idle(engine)
    with bundle.generate(prompt="p", stream=True, ignore_eos=True) as deltas:
        assert isinstance(next(deltas), CompletionDelta)
    assert idle(engine)
    assert list(bundle.generate(prompt="p", stream=True, max_tokens=4))[-1].finish_reason is not None
    assert bundle.generate(prompt="p", max_tokens=4, ignore_eos=True).num_output_tokens == 4


def test_a_stream_that_ended_is_not_cancelled() -> None:
    cancelled: list[bool] = []
    stream = Stream(cancel=lambda: cancelled.append(True))
    stream.put({"type": "error", "code": "INTERNAL", "message": "boom"})
    deltas = stream.deltas()
    with pytest.raises(RequestError, match="boom"):
        next(deltas)
    assert list(deltas) == []
    deltas.close()
    assert not cancelled
