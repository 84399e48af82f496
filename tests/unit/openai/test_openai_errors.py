"""Everything that goes wrong, in OpenAI's shape and with the status that its clients know."""

from __future__ import annotations

import http.client
import json
from typing import Any

import openai
import pytest
from running_front import RunningFront, Start

from mm2c_runtime.errors import RequestError
from mm2c_runtime.openai.body import MAX_BODY
from mm2c_runtime.openai.errors import of_engine

CHAT = "/v1/chat/completions"
HELLO: Any = [{"role": "user", "content": "Hello!"}]


@pytest.mark.parametrize(
    ("code", "status", "kind", "told"),
    [
        ("INVALID_ARGUMENT", 400, openai.BadRequestError, "why"),
        ("RESOURCE_EXHAUSTED", 429, openai.RateLimitError, "why"),
        ("UNAVAILABLE", 503, openai.InternalServerError, "why"),
        ("CANCELLED", 504, openai.InternalServerError, "why"),
        ("INTERNAL", 500, openai.InternalServerError, "its log says why"),
    ],
)
def test_the_engine_s_codes(
    front: RunningFront, code: Any, status: int, kind: type[openai.APIStatusError], told: str
) -> None:
    front.engine.script = lambda fields: [
        RequestError(code, "why: /secret/path" if code == "INTERNAL" else "why")
    ]
    with pytest.raises(kind, match=told) as error:
        front.client().chat.completions.create(model="m2", messages=HELLO)
    assert error.value.status_code == status
    assert "secret" not in str(error.value)
    assert ("retry-after" in error.value.response.headers) == (status in (429, 503))


def test_a_defect_is_told_without_a_trace(front: RunningFront) -> None:
    front.engine.script = lambda fields: [KeyError("secret")]
    for stream in (False, True):
        status, error = front.error(CHAT, {"messages": HELLO, "stream": stream})
        assert status == 500
        assert error["type"] == "server_error"
        assert "secret" not in str(error)


def test_an_answer_that_the_server_gave_up(front: RunningFront) -> None:
    from scripted_engine import ended

    front.engine.script = lambda fields: [ended("cancelled")]
    assert front.error(CHAT, {"messages": HELLO})[0] == 504


@pytest.mark.parametrize(
    ("message", "fields", "param", "code"),
    [
        ("temperature: -1 is not allowed", {"temperature"}, "temperature", None),
        ("messages[3].content[0].text must be a string", {"messages"}, "messages[3].content[0].text", None),
        ("the request is nested too deeply", {"messages"}, None, None),
        ("text_input: is empty", {"prompt"}, "prompt", None),
        ("sampling_parameters: seed: is wrong", {"seed"}, "seed", None),
        ("the prompt has 9 tokens; the context holds 8", {"messages"}, None, "context_length_exceeded"),
    ],
)
def test_the_place_of_a_refusal(message: str, fields: set[str], param: str | None, code: str | None) -> None:
    error = of_engine(RequestError("INVALID_ARGUMENT", message), fields)
    assert (error.param, error.code) == (param, code)
    assert "text_input" not in error.message


@pytest.mark.parametrize(
    ("given", "param", "reason"),
    [
        ({"temprature": 1}, "temprature", 'did you mean "temperature"?'),
        ({"max_token": 1}, "max_token", 'did you mean "max_tokens"?'),
        ({"xyzzy": 1}, "xyzzy", 'unknown field "xyzzy"'),
        ({"functions": [{"name": "f"}]}, "functions", "send tools"),
        ({"function_call": "auto"}, "function_call", "send tool_choice"),
        ({"web_search_options": {}}, "web_search_options", "no web search"),
        ({"prediction": {"type": "content"}}, "prediction", "predicted"),
        ({"audio": {"voice": "x"}}, "audio", "text only"),
        ({"modalities": ["text", "audio"]}, "modalities", "text only"),
        ({"guided_json": {"type": "object"}}, "guided_json", "structured_outputs"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 129}, "n", "less than or equal to 128"),
        ({"n": "2"}, "n", "valid integer"),
        ({"seed": 2**64}, "seed", "less than"),
        ({"stream": "yes"}, "stream", "valid boolean"),
        ({"top_logprobs": 3}, "top_logprobs", "needs logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream=true"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "extra inputs"),
        ({"messages": "Hello"}, "messages", "valid list"),
        ({"messages": None}, "messages", "missing"),
        ({"guided_decoding_guide": "\ud800"}, "guided_decoding_guide", "surrogate"),
    ],
)
def test_fields_that_are_refused(front: RunningFront, given: Any, param: str, reason: str) -> None:
    status, error = front.error(CHAT, {"messages": HELLO, **given})
    assert status == 400
    assert error["param"] == param
    assert reason in error["message"]
    assert error["type"] == "invalid_request_error"
    assert front.engine.asked == []


@pytest.mark.parametrize(
    "given",
    [
        {"temprature": None, "user": "u", "metadata": {}, "store": True, "service_tier": "auto"},
        {"functions": [], "audio": None, "modalities": ["text"], "verbosity": "low", "prompt_cache_key": "k"},
        {"n": None, "seed": None, "stop": None, "tools": None, "logprobs": None, "stream": None},
    ],
)
def test_fields_without_effect(front: RunningFront, given: dict[str, Any]) -> None:
    assert front.ask(CHAT, {"messages": HELLO, **given})[0] == 200
    assert set(front.engine.asked[0]) == {"messages", "stream", "sampling_parameters"}
    assert front.engine.asked[0]["sampling_parameters"] == "{}"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b'{"messages": NaN}',
        b"\xff",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"null",
        b'{"messages": [], "temperature": 1e999}',
    ],
)
def test_bodies_that_are_no_object_of_json(front: RunningFront, body: bytes) -> None:
    status, error = front.error(CHAT, body)
    assert status == 400
    assert "body" in error["message"]


def test_a_body_that_is_too_large(front: RunningFront) -> None:
    status, error = front.error(CHAT, b" " * (MAX_BODY + 1))
    assert status == 413
    assert "64 MiB" in error["message"]


def test_a_body_of_unknown_length_that_is_too_large(front: RunningFront) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=20)
    pieces = (b" " * (1 << 20) for _ in range(66))
    connection.request("POST", CHAT, pieces, encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
    answer = connection.getresponse()
    assert answer.status == 413
    assert json.loads(answer.read())["error"]["code"] == "request_too_large"
    connection.close()


def test_a_large_body_is_read_beside_the_loop(front: RunningFront) -> None:
    text = "é" * (4 << 20)
    front.ask(CHAT, {"messages": [{"role": "user", "content": text}]})
    assert json.loads(front.engine.asked[0]["messages"])[0]["content"] == text


def test_a_lone_surrogate_travels_to_the_engine_as_it_is(front: RunningFront) -> None:
    front.ask(CHAT, {"messages": [{"role": "user", "content": "\ud800"}]})
    assert json.loads(front.engine.asked[0]["messages"])[0]["content"] == "\ud800"


def test_unknown_models_and_paths(front: RunningFront) -> None:
    client = front.client()
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model="org/othr", messages=HELLO)
    assert error.value.code == "model_not_found"
    assert 'did you mean "org/other"' in error.value.message
    with pytest.raises(openai.NotFoundError, match="served here: m2, org/other"):
        client.models.retrieve("gpt")
    with pytest.raises(openai.NotFoundError, match="unknown path: POST /v1/embeddings"):
        client.embeddings.create(model="m2", input="x")
    status, answer, headers = front.ask(CHAT)
    assert status == 405
    assert answer["error"]["code"] == "method_not_supported"
    assert headers["allow"] == "POST"
    assert front.error(CHAT, {"messages": HELLO, "model": 3})[1]["param"] == "model"
    assert front.error(CHAT, {"messages": HELLO, "model": "\ud800"})[0] == 404


def test_models(front: RunningFront) -> None:
    client = front.client()
    assert [model.id for model in client.models.list()] == ["m2", "org/other"]
    model = client.models.retrieve("org/other")
    assert (model.id, model.object, model.owned_by) == ("org/other", "model", "mm2c")
    assert model.max_model_len == 100  # type: ignore[attr-defined]
    answer = client.chat.completions.create(model="org/other", messages=HELLO)
    assert answer.model == "org/other"
    assert front.ask(CHAT, {"messages": HELLO})[1]["model"] == "m2"


def test_health(front: RunningFront) -> None:
    assert front.ask("/health")[0] == 200
    front.engine.is_ready = False
    status, answer, _ = front.ask("/health")
    assert status == 503
    assert answer["error"]["code"] == "service_unavailable"


def test_metrics_that_nobody_serves(front: RunningFront) -> None:
    status, answer, _ = front.ask("/metrics")
    assert status == 503
    assert "metrics cannot be read" in answer["error"]["message"]


def test_metrics_are_passed_on(start_front: Start, front: RunningFront) -> None:
    proxy = start_front(metrics_url=f"http://127.0.0.1:{front.port}/health")
    status, answer, _ = proxy.ask("/metrics")
    assert (status, answer) == (200, {"status": "ready"})


def test_api_keys(start_front: Start) -> None:
    front = start_front(keys=(b"sk-one", b"sk-two"))
    for key in ("sk-one", "sk-two"):
        with front.client(key) as client:
            assert (
                client.chat.completions.create(model="m2", messages=HELLO).choices[0].finish_reason == "stop"
            )
    with front.client("sk-wrong") as client, pytest.raises(openai.AuthenticationError) as error:
        client.models.list()
    assert error.value.code == "invalid_api_key"
    for headers in (
        {},
        {"Authorization": "Basic x"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer \xe9"},
    ):
        status, answer, reply = front.ask("/v1/nothing", **headers)
        assert status == 401
        assert answer["error"]["type"] == "authentication_error"
        assert reply["www-authenticate"] == "Bearer"
    assert front.ask("/health")[0] == 200  # probes have no key
    assert front.ask("/metrics")[0] == 503
