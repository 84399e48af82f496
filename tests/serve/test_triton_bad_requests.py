"""A bad request gets its reason as HTTP 400 / INVALID_ARGUMENT, and no other request notices."""

from __future__ import annotations

import json
from typing import Any

import pytest
from served import Served
from tritonclient.utils import InferenceServerException

ASK = json.dumps([{"role": "user", "content": "Hello"}])

BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "neither of text_input and messages"),
    ({"text_input": "a", "messages": ASK}, "both of text_input and messages"),
    ({"messages": "[{"}, "messages: not valid JSON"),
    ({"messages": '[{"role": "narrator", "content": "x"}]'}, "narrator"),
    ({"text_input": "a", "max_tokens": 0}, "max_tokens: 0"),
    ({"text_input": "a", "temperature": -1.0}, "temperature: -1"),
    ({"messages": ASK, "tools": "{}"}, "tools"),
    ({"text_input": "a", "sampling_parameters": "{oops"}, "sampling_parameters: not valid JSON"),
]


@pytest.mark.parametrize(("fields", "reason"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_refused_over_http_and_grpc(fake_server: Served, fields: dict[str, Any], reason: str) -> None:
    bystander = fake_server.stream(text_input="ok", max_tokens=40)
    for path in ("minimax_m2/generate", "minimax_m2/generate_stream", "minimax_m2_unary/generate"):
        status, body = fake_server.post(path, **fields)
        assert status == 400
        assert "INVALID_ARGUMENT: " in body
        assert reason in json.loads(body.removeprefix("data: "))["error"]
    with pytest.raises(InferenceServerException) as refused:
        fake_server.stream(**fields).whole()
    assert refused.value.message().startswith("INVALID_ARGUMENT: ")
    assert reason in refused.value.message()
    assert bystander.whole().text == "".join(f"ok{n} " for n in range(40))


def test_unknown_option_is_refused_by_name(fake_server: Served) -> None:
    status, body = fake_server.post("minimax_m2/generate", text_input="a", max_tokns=4)
    assert status == 400
    assert 'unknown option \\"max_tokns\\"; did you mean \\"max_tokens\\"?' in body
    with pytest.raises(InferenceServerException, match=r'INVALID_ARGUMENT: unknown option "unknown_x"'):
        fake_server.stream(text_input="a", unknown_x=1).whole()


def test_options_that_are_no_tensor_arrive_as_parameters(fake_server: Served) -> None:
    status, _ = fake_server.post(
        "minimax_m2/generate", text_input="a", min_tokens=1, n=1, priority=2, timeout=10**7
    )
    assert status == 200
    status, body = fake_server.post("minimax_m2/generate", text_input="a", n=2)
    assert status == 400
    assert "n: 2 is not supported" in body


def test_stream_on_the_unary_model_names_the_other(fake_server: Served) -> None:
    status, body = fake_server.post("minimax_m2_unary/generate", text_input="a", stream=True)
    assert status == 400
    assert "minimax_m2" in body


def test_two_values_where_one_is_meant(fake_server: Served) -> None:
    with pytest.raises(InferenceServerException):  # Triton itself: the tensor's shape is not [1]
        fake_server.stream(text_input=["a", "b"]).whole()


def test_parse_refuses_bad_tools(fake_server: Served) -> None:
    with pytest.raises(InferenceServerException, match="INVALID_ARGUMENT: tools: not valid JSON"):
        fake_server.infer("minimax_m2_parse", text="a", tools="[")
    with pytest.raises(InferenceServerException, match="2 values for 1 texts"):
        fake_server.infer("minimax_m2_parse", text="a", starts_in_reasoning=[True, False])
