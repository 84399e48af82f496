"""Requests through the service with a scripted engine: what is sent, when, and what ends it."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import fake_pb
import pytest
from fake_engine import ScriptedClient, until

from mm2c_runtime.errors import RequestError
from mm2c_runtime.stub import link as link_module
from mm2c_runtime.stub.service import Service


def _begin(service: Service, **tensors: Any) -> tuple[str, fake_pb.Sender]:
    request = fake_pb.Request({"text_input": "a", "stream": True, **tensors})
    service.execute([request])
    return ScriptedClient.current.submitted[-1], request.sender


def _drain(service: Service) -> None:
    """The sender thread has sent whatever was posted, in order, when it comes to another request's answer."""
    last = fake_pb.Request({"text_input": b"\xff"})  # refused
    service.execute([last])
    until(lambda: last.sender.sent)


def _delta(id: str, text: str = "", **said: Any) -> dict[str, Any]:
    return {"type": "delta", "id": id, "text": text, **said}


def _finish(id: str) -> dict[str, Any]:
    counts = {"num_input_tokens": 2, "num_output_tokens": 3}
    return {"type": "finish", "id": id, "finish_reason": "stop", **counts}


def _texts(sender: fake_pb.Sender) -> list[str]:
    return [response.values["text_output"][0].decode() for response, _ in sender.sent]


def test_deltas_arrive_one_by_one_and_the_last_is_final(service: Service) -> None:
    id, sender = _begin(service)
    for n, text in enumerate(("a", "b")):
        ScriptedClient.current.say(_delta(id, text))
        until(lambda n=n: len(sender.sent) == n + 1)
    ScriptedClient.current.say(_finish(id))
    until(lambda: len(sender.sent) == 3)
    assert _texts(sender) == ["a", "b", ""]
    assert [flags for _, flags in sender.sent] == [0, 0, 1]
    assert sender.sent[-1][0].values["num_output_tokens"].tolist() == [3]


def _hold(sender: fake_pb.Sender) -> tuple[threading.Event, threading.Event]:
    """Its next response is stuck until the second event is set; the first says that it is."""
    blocked, release = threading.Event(), threading.Event()
    send = sender.send

    def slow(response: Any, flags: int = 0) -> None:
        blocked.set()
        release.wait(5)
        send(response, flags)

    sender.send = slow  # type: ignore[method-assign]
    return blocked, release


def test_what_piles_up_leaves_together(service: Service) -> None:
    id, sender = _begin(service)
    blocked, release = _hold(sender)
    say = ScriptedClient.current.say
    say(_delta(id, "a"))
    assert blocked.wait(5)
    opening = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}
    for event in (
        _delta(id, "b"),
        _delta(id, "", tool_calls=[opening]),
        _delta(id, "", tool_calls=[{"index": 0, "function": {"arguments": "{}"}}]),
        _finish(id),
    ):
        say(event)  # returns at once although the sender is stuck
    release.set()
    until(lambda: len(sender.sent) == 2)
    assert _texts(sender) == ["a", "b"]
    (call,) = json.loads(sender.sent[1][0].values["tool_calls"][0])
    assert call["function"] == {"name": "f", "arguments": "{}"}
    assert sender.sent[1][1] == 1


@pytest.mark.parametrize("stream", [True, False])
def test_what_piles_up_before_an_error_is_told_before_it_in_a_stream(service: Service, stream: bool) -> None:
    id, sender = _begin(service, stream=stream)
    blocked, release = _hold(sender)
    say = ScriptedClient.current.say
    say(_delta(id, "a"))
    assert not stream or blocked.wait(5)
    say(_delta(id, "b"))
    say({"type": "error", "id": id, "code": "UNAVAILABLE", "message": "gone"})
    release.set()
    until(lambda: sender.sent and sender.sent[-1][1] == 1)
    assert [flags for _, flags in sender.sent] == ([0, 0, 1] if stream else [1])
    assert [one.values["text_output"][0] for one, _ in sender.sent[:-1]] == ([b"a", b"b"] if stream else [])
    assert sender.sent[-1][0].error is not None


def test_without_streaming_there_is_one_response(service: Service) -> None:
    id, sender = _begin(service, stream=False)
    for event in (_delta(id, "a"), _delta(id, "b"), _finish(id)):
        ScriptedClient.current.say(event)
    _drain(service)
    assert _texts(sender) == ["ab"]
    assert sender.sent[0][1] == 1


def test_engine_errors_keep_their_code(service: Service) -> None:
    id, sender = _begin(service)
    ScriptedClient.current.say({"type": "error", "id": id, "code": "INVALID_ARGUMENT", "message": "no"})
    until(lambda: sender.sent)
    error = sender.sent[0][0].error
    assert error is not None
    assert (error.message, error.code) == ("INVALID_ARGUMENT: no", "INVALID_ARG")


def test_a_lost_engine_fails_what_is_in_flight_and_what_comes(service: Service) -> None:
    _, sender = _begin(service)
    ScriptedClient.current.die()
    until(lambda: sender.sent)
    late = fake_pb.Request({"text_input": "b"})
    service.execute([late])
    until(lambda: late.sender.sent)
    for answer in (sender, late.sender):
        error = answer.sent[0][0].error
        assert error is not None
        assert error.code == "UNAVAILABLE"
        assert answer.sent[0][1] == 1


def test_a_cancelled_request_is_cancelled_in_the_engine_and_answered_once(service: Service) -> None:
    id, sender = _begin(service)
    sender.cancelled = True
    until(lambda: ScriptedClient.current.cancelled == [id])
    ScriptedClient.current.say(_finish(id))  # the engine's own end comes late and is not sent
    _drain(service)
    assert len(sender.sent) == 1
    error = sender.sent[0][0].error
    assert error is not None
    assert error.code == "CANCELLED"


def test_a_cancel_that_overtakes_its_request_is_repeated(service: Service) -> None:
    """The watch sees the request before the engine has it: the engine ignores that cancel."""
    client = ScriptedClient.current
    order: list[str] = []
    request = fake_pb.Request({"text_input": "a", "stream": True})
    request.sender.cancelled = True

    def submit(id: str, fields: dict[str, Any]) -> None:
        until(lambda: "cancel" in order)
        order.append("submit")

    client.submit = submit  # type: ignore[method-assign]
    client.cancel = lambda id: order.append("cancel")  # type: ignore[method-assign]
    service.execute([request])
    assert order == ["cancel", "submit", "cancel"]


def test_a_refused_request_does_not_reach_the_engine(service: Service) -> None:
    request = fake_pb.Request({"text_input": b"\xff"})
    service.execute([request])
    until(lambda: request.sender.sent)
    assert ScriptedClient.current.submitted == []


def test_unary_refuses_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "EngineClient", ScriptedClient)
    service = Service(fake_pb, Path("/nowhere"), lambda: None, unary=True)
    service.link.connect(1)
    request = fake_pb.Request({"text_input": "a", "stream": True})
    service.execute([request])
    until(lambda: request.sender.sent)
    assert "needs the model minimax_m2" in request.sender.sent[0][0].error.message  # type: ignore[union-attr]
    service.close()


def test_a_client_that_cannot_be_sent_to_does_not_stop_the_others(service: Service) -> None:
    first, broken = _begin(service)

    def fail(response: Any, flags: int = 0) -> None:
        raise RuntimeError("gone")

    broken.send = fail  # type: ignore[method-assign]
    ScriptedClient.current.say(_delta(first, "x"))
    second, sender = _begin(service)
    ScriptedClient.current.say(_delta(second, "y"))
    until(lambda: sender.sent)
    assert _texts(sender) == ["y"]
    assert any("gone" in text for text in fake_pb.Logger.errors)


def test_submit_without_a_connection_says_so() -> None:
    link = link_module.EngineLink(Path("/nowhere"), lambda event: None, lambda ids: None, lambda: None)
    with pytest.raises(RequestError, match="UNAVAILABLE: the engine is not running"):
        link.submit("1", {})
