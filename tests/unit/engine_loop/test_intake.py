"""A prompt that takes long to prepare holds up no other request, no cancel and no question."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_engine_process import Watch
from toy_engine import ToyExecutor, toy_engine

from mm2c_runtime.engine import Engine
from mm2c_runtime.generation import LONG_TEXT
from mm2c_runtime.server import intake as intake_module
from mm2c_runtime.server.client import EngineClient
from mm2c_runtime.server.intake import WORKERS, Intake
from mm2c_runtime.server.listener import Listener

SLOW = "slow "


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Prompts that begin with SLOW are prepared once this is set."""
    opened = threading.Event()
    from mm2c_runtime.generation import Preparer

    prepare = Preparer.prepare

    def slowly(self: Preparer, request: Any) -> Any:
        if request.text_input.startswith(SLOW):
            assert opened.wait(10)
        return prepare(self, request)

    monkeypatch.setattr(Preparer, "prepare", slowly)
    yield opened
    opened.set()


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = toy_engine(ToyExecutor(delay=0.002))
    yield made
    made.close()


@pytest.fixture
def client(engine: Engine, tmp_path: Path) -> Iterator[EngineClient]:
    listener = Listener(engine, tmp_path / "s", {}, on_shutdown=lambda: None)
    watch = Watch()
    made = EngineClient(str(tmp_path / "s"), watch)
    made.watch = watch  # type: ignore[attr-defined]
    made.intake = listener._intake  # type: ignore[attr-defined]
    made.connect(5)
    yield made
    made.close()
    listener.close()


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def ask(client: EngineClient, request_id: str, prompt: str, **options: Any) -> None:
    client.submit(request_id, {"text_input": prompt, "stream": True, "ignore_eos": True, **options})


def test_others_overtake_a_slow_prompt_of_the_same_client(client: Any, gate: threading.Event) -> None:
    ask(client, "running", "p")
    client.watch.wait("running", ("delta",))
    ask(client, "slow", SLOW, max_tokens=3)
    ask(client, "quick", "p", max_tokens=3)
    assert client.watch.wait("quick", timeout=2)["finish_reason"] == "length"
    assert client.ping(1) < 1
    client.cancel("running")
    assert client.watch.wait("running", timeout=2)["finish_reason"] == "cancelled"
    assert "slow" not in client.watch.events
    gate.set()
    assert client.watch.wait("slow")["finish_reason"] == "length"


def test_a_cancel_before_the_request_was_prepared_counts(client: Any, gate: threading.Event) -> None:
    count = WORKERS + 2  # the last two wait for a worker
    for number in range(count):
        ask(client, str(number), SLOW)
    for number in range(count):
        client.cancel(str(number))
    client.ping(1)  # the cancels have arrived
    gate.set()
    for number in range(count):
        end = client.watch.wait(str(number))
        assert (end["type"], end["finish_reason"]) == ("finish", "cancelled")
        assert end["num_output_tokens"] <= 1
    ask(client, "0", "p", max_tokens=2)  # the id is free again
    until(lambda: sum(event["type"] == "finish" for event in client.watch.events["0"]) == 2)


def test_a_client_that_leaves_meanwhile_leaves_nothing_behind(
    client: Any, engine: Engine, gate: threading.Event
) -> None:
    ended = threading.Semaphore(0)
    take = client.intake._take

    def counted(pending: Any) -> bool:
        taken: bool = take(pending)
        ended.release()
        return taken

    client.intake._take = counted
    for number in range(WORKERS + 2):
        ask(client, str(number), SLOW)
    client.ping(1)
    assert len(client.intake._pending) == WORKERS + 2
    client.close()
    until(lambda: all(pending.cancelled.is_set() for pending in client.intake._pending.values()))
    gate.set()
    for _ in range(WORKERS + 2):
        assert ended.acquire(timeout=10)  # each was handed to the engine or dropped
    assert client.intake._pending == {}
    until(lambda: not engine.in_flight)
    assert engine.stats()["generated_tokens"] < 50


def test_an_id_that_is_being_prepared_is_taken(client: Any, gate: threading.Event, tmp_path: Path) -> None:
    ask(client, "a", SLOW, max_tokens=2)
    client._live.clear()  # as a client that does not keep count
    ask(client, "a", "p")
    assert "already running" in client.watch.wait("a")["message"]


def test_closing_refuses_what_was_not_begun(engine: Engine, gate: threading.Event) -> None:
    intake, ends = Intake(engine), dict[str, dict[str, Any]]()
    for number in range(WORKERS + 1):
        intake.submit(str(number), {"text_input": SLOW}, lambda e: ends.setdefault(e["id"], e))
    intake.close()
    assert ends[str(WORKERS)]["code"] == "UNAVAILABLE"
    assert len(ends) == 1
    intake.submit("late", {"text_input": "p"}, lambda e: ends.setdefault(e["id"], e))
    assert ends["late"]["code"] == "UNAVAILABLE"


def test_what_waits_to_be_prepared_is_bounded(
    engine: Engine, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    intake, listener = Intake(engine), Watch()
    monkeypatch.setattr(intake_module, "MAX_PENDING", 6)
    monkeypatch.setattr(intake_module, "MAX_PENDING_BYTES", 100)

    def submit(request_id: str, size: int) -> None:
        fields = {"text_input": SLOW, "max_tokens": 1}
        intake.submit(request_id, fields, lambda event: listener({**event, "id": request_id}), size=size)

    submit("alone", 1000)
    submit("second", 1)
    assert listener.wait("second")["code"] == "RESOURCE_EXHAUSTED"
    assert "1 requests of 1000 bytes wait" in listener.wait("second")["message"]
    monkeypatch.setattr(intake_module, "MAX_PENDING_BYTES", 2000)
    for number in range(6):
        submit(str(number), 1)
    assert listener.wait("5")["code"] == "RESOURCE_EXHAUSTED"
    gate.set()
    assert [listener.wait(str(number))["type"] for number in range(5)] == ["finish"] * 5
    assert listener.wait("alone")["type"] == "finish"
    assert intake._bytes == 0
    submit("later", 1)
    assert listener.wait("later")["type"] == "finish"
    intake.close()


def test_the_timeout_begins_when_the_request_comes(engine: Engine, gate: threading.Event) -> None:
    intake, listener = Intake(engine), Watch()
    asked: list[str] = []
    prepare = engine.preparer.prepare
    engine.preparer.prepare = lambda request: asked.append(request.text_input) or prepare(request)  # type: ignore
    for number in range(WORKERS):
        intake.submit(str(number), {"text_input": SLOW, "timeout": 0.2}, listener)
    until(lambda: all(pending.begun for pending in intake._pending.values()))
    intake.submit("queued", {"text_input": "p", "timeout": 0.2}, listener)
    time.sleep(0.25)
    gate.set()
    assert "the timeout of 0.2 s ran out before it was prepared" in listener.wait("queued")["message"]
    assert listener.wait("queued")["code"] == "CANCELLED"
    assert "p" not in asked
    for number in range(WORKERS):
        assert "the timeout of 0.2 s ran out" in listener.wait(str(number))["message"]
    intake.close()


def test_long_texts_are_tokenised_outside_the_lock(engine: Engine) -> None:
    """``encode`` keeps Python's lock, ``encode_batch`` does not: other threads must run meanwhile."""
    preparer = engine.preparer
    text = "the quick brown fox " * 40_000
    assert len(text) >= LONG_TEXT
    gaps, done = [0.0], threading.Event()

    def beat() -> None:
        last = time.perf_counter()
        while not done.is_set():
            time.sleep(0.001)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    thread = threading.Thread(target=beat)
    thread.start()
    begin = time.perf_counter()
    ids = preparer._encode(text)
    took = time.perf_counter() - begin
    done.set()
    thread.join()
    assert ids[:50] == preparer.tokenizer.encode(text[:400], add_special_tokens=False).ids[:50]
    assert max(gaps) < took / 2


def test_a_frame_nested_too_deeply_ends_its_connection_only(client: Any, tmp_path: Path) -> None:
    from mm2c_runtime.server.protocol import Reader, encode

    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(5)
        stream.connect(str(tmp_path / "s"))
        stream.sendall(encode({"type": "hello", "version": 1}))
        reader = Reader(stream)
        assert reader.read()
        body = b'{"type":"submit","id":"x","fields":' + b'{"a":' * 100_000
        stream.sendall(len(body).to_bytes(4, "little") + body)
        assert reader.read() is None
    assert client.ping(1) < 1


def test_an_id_sent_again_before_the_first_was_let_go_is_counted_once(engine: Engine) -> None:
    intake = Intake(engine)
    finished, returned, ends = threading.Event(), threading.Event(), threading.Semaphore(0)
    submit = engine.submit

    def late(*arguments: Any, **options: Any) -> None:
        submit(*arguments, **options)
        if not finished.is_set():  # the first: its answer is out, but it has not come back from the engine
            assert finished.wait(10)
            returned.wait(10)

    def on_event(event: Any) -> None:
        if event["type"] == "finish":
            finished.set()
            ends.release()

    engine.submit = late  # type: ignore[method-assign]
    fields = {"text_input": "p", "max_tokens": 1, "ignore_eos": True}
    intake.submit("a", fields, on_event, size=100)
    assert ends.acquire(timeout=10)
    intake.submit("a", fields, on_event, size=100)
    assert ends.acquire(timeout=10)
    returned.set()
    until(lambda: not intake._pending)
    intake.close()
    intake._workers.shutdown()
    assert intake._bytes == 0
