"""The rule of the response sender: no question about a cancellation during or after the final response."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import fake_pb
import pytest
from fake_engine import ScriptedClient, until

from mm2c_runtime.stub import link as link_module
from mm2c_runtime.stub.reply import Reply
from mm2c_runtime.stub.service import Service


class Factory(fake_pb.Sender):
    """A response factory as Triton has it: gone with the final response, and nobody may ask it then."""

    def __init__(self, question_seconds: float = 0.0) -> None:
        super().__init__()
        self._seconds = question_seconds
        self.gone = False
        self.used_after_free = False
        self.asked = threading.Event()

    def is_cancelled(self) -> bool:
        self.asked.set()
        self.used_after_free |= self.gone
        time.sleep(self._seconds)
        self.used_after_free |= self.gone
        return False

    def send(self, response: fake_pb.InferenceResponse, flags: int = 0) -> None:
        super().send(response, flags)
        self.gone = bool(flags)


def test_the_final_response_waits_for_an_open_question() -> None:
    factory = Factory(question_seconds=0.1)
    reply = Reply(factory)
    asking = threading.Thread(target=reply.is_cancelled)
    asking.start()
    assert factory.asked.wait(5)
    reply.send_last(fake_pb.InferenceResponse(), 1)
    asking.join()
    assert factory.gone
    assert not factory.used_after_free


def test_nobody_is_asked_after_the_final_response() -> None:
    factory = Factory()
    reply = Reply(factory)
    reply.send(fake_pb.InferenceResponse())
    assert not reply.is_cancelled()
    assert factory.asked.is_set()
    factory.asked.clear()
    reply.send_last(fake_pb.InferenceResponse(), 1)
    assert not reply.is_cancelled()
    assert not factory.asked.is_set()


def test_the_service_keeps_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """The poller asks without a pause while requests end: the race that ended tritonserver with SIGSEGV."""
    monkeypatch.setattr("mm2c_runtime.stub.live.POLL_SECONDS", 0.0)
    monkeypatch.setattr(link_module, "EngineClient", Answering)
    service = Service(fake_pb, Path("/nowhere"), lambda: None, unary=False)
    service.link.connect(1)
    requests = [fake_pb.Request({"text_input": "a", "stream": True}) for _ in range(60)]
    for request in requests:
        request.sender = Factory(question_seconds=0.001)
    for request in requests:
        service.execute([request])
        time.sleep(0.002)
    until(lambda: all(request.sender.gone for request in requests), seconds=10)  # type: ignore[attr-defined]
    service.close()
    assert not any(request.sender.used_after_free for request in requests)  # type: ignore[attr-defined]


class Answering(ScriptedClient):
    """Ends each request a few milliseconds after it came."""

    def submit(self, id: str, fields: dict[str, object]) -> None:
        counts = {"num_input_tokens": 1, "num_output_tokens": 1}
        event = {"type": "finish", "id": id, "finish_reason": "stop", **counts}
        threading.Timer(0.004, self.say, [event]).start()
