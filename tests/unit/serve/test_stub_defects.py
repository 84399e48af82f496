"""An exception that nobody foresaw ends one request with INTERNAL; the stub and its other requests live on."""

from __future__ import annotations

from typing import Any

import fake_pb
import numpy as np
import pytest
from fake_engine import ScriptedClient, until

from mm2c_runtime.errors import RequestError
from mm2c_runtime.requests import parse_request
from mm2c_runtime.stub import parse as parse_module
from mm2c_runtime.stub import service as service_module
from mm2c_runtime.stub.parse import ParseModel
from mm2c_runtime.stub.service import Service


def _ask(service: Service, *texts: str) -> list[fake_pb.Request]:
    requests = [fake_pb.Request({"text_input": text, "stream": True}) for text in texts]
    service.execute(requests)
    return requests


def _error(request: fake_pb.Request) -> fake_pb.TritonError:
    until(lambda: request.sender.sent)
    response, flags = request.sender.sent[-1]
    assert flags == 1
    assert response.error is not None
    return response.error


def _finishes(request: fake_pb.Request, id: str) -> None:
    counts = {"num_input_tokens": 1, "num_output_tokens": 1}
    ScriptedClient.current.say({"type": "finish", "id": id, "finish_reason": "stop", **counts})
    until(lambda: request.sender.sent)
    assert request.sender.sent[-1][0].error is None


def test_while_submitting(service: Service) -> None:
    client = ScriptedClient.current
    submit = client.submit

    def fails(id: str, fields: dict[str, Any]) -> None:
        if fields["text_input"] == "defect":
            raise KeyError("a defect")
        submit(id, fields)

    client.submit = fails  # type: ignore[method-assign]
    broken, well = _ask(service, "defect", "fine")
    error = _error(broken)
    assert (error.code, error.message) == ("INTERNAL", "INTERNAL: KeyError: 'a defect'")
    _finishes(well, client.submitted[0])
    assert any("Traceback" in text for text in fake_pb.Logger.errors)


def test_while_decoding(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = service_module.decode

    def fails_once(pb: Any, request: fake_pb.Request) -> Any:
        if request.tensors["text_input"] == "x":
            raise ZeroDivisionError("a defect")
        return decode(pb, request)

    monkeypatch.setattr(service_module, "decode", fails_once)
    broken, well = _ask(service, "x", "fine")
    assert _error(broken).message == "INTERNAL: ZeroDivisionError: a defect"
    _finishes(well, ScriptedClient.current.submitted[0])


def test_without_a_response_sender(service: Service) -> None:
    broken, well = (fake_pb.Request({"text_input": text}) for text in "ab")
    broken.get_response_sender = None  # type: ignore[method-assign,assignment]
    service.execute([broken, well])
    _finishes(well, ScriptedClient.current.submitted[0])


def test_an_event_that_makes_no_sense(service: Service) -> None:
    broken, well = _ask(service, "a", "b")
    first, second = ScriptedClient.current.submitted
    ScriptedClient.current.say({"type": "delta", "id": first, "token_ids": 5})
    assert _error(broken).code == "INTERNAL"
    assert ScriptedClient.current.cancelled == [first]
    ScriptedClient.current.say({"no": "type"})
    _finishes(well, second)


def test_what_cannot_be_delivered_is_cancelled_in_the_engine(service: Service) -> None:
    (broken,) = _ask(service, "a")
    (id,) = ScriptedClient.current.submitted
    send = broken.sender.send

    def fails_first(response: Any, flags: int = 0) -> None:
        if not flags:
            raise RuntimeError("gone")
        send(response, flags)

    broken.sender.send = fails_first  # type: ignore[method-assign]
    ScriptedClient.current.say({"type": "delta", "id": id, "text": "x"})
    assert _error(broken).code == "INTERNAL"
    assert ScriptedClient.current.cancelled == [id]
    ScriptedClient.current.say({"type": "delta", "id": id, "text": "y"})
    (after,) = _ask(service, "b")  # its end leaves after whatever was to be sent of the other
    _finishes(after, ScriptedClient.current.submitted[1])
    assert len(broken.sender.sent) == 1


def test_parse_answers_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    parse_message = parse_module.parse_message

    def fails(text: str, *rest: Any, **options: Any) -> Any:
        if text == "defect":
            raise AssertionError("a defect")
        return parse_message(text, *rest, **options)

    monkeypatch.setattr(parse_module, "parse_message", fails)
    texts = [fake_pb.Request({"text": text}) for text in ("defect", "fine")]
    for request in texts:
        request.outputs = {"reasoning", "content", "tool_calls"}
    broken, well = ParseModel(fake_pb).execute(texts)
    assert broken.error.code == "INTERNAL"
    assert broken.error.message == "INTERNAL: AssertionError: a defect"
    assert isinstance(well.values["content"], np.ndarray)


@pytest.mark.parametrize(
    "tools", ['[{"function": 3}]', "[{}]", '[{"function": {"name": 5}}]', '{"a": 1}', "[NaN]", "[", b"\xff"]
)
def test_tools_are_refused_in_the_words_of_the_other_models(tools: Any) -> None:
    request = fake_pb.Request({"text": "a", "tools": tools})
    request.outputs = {"content"}
    (answer,) = ParseModel(fake_pb).execute([request])
    with pytest.raises(RequestError) as refused:
        parse_request({"messages": [{"role": "user", "content": "a"}], "tools": tools})
    assert answer.error.message == f"INVALID_ARGUMENT: {refused.value.message}"
