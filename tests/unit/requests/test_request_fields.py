from __future__ import annotations

import json
from typing import Any

import pytest

from mm2c_runtime.errors import RequestError
from mm2c_runtime.requests import parse_request

USER = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def test_text_input() -> None:
    request = parse_request({"text_input": "hello", "messages": None})
    assert request.text_input == "hello"
    assert not request.parse
    assert parse_request({"text_input": [b"hello"]}).text_input == "hello"
    assert parse_request({"text_input": "x", "parse": True, "tools": [TOOL]}).tools == (TOOL,)


def test_messages_as_json_or_list() -> None:
    for given in (USER, json.dumps(USER), json.dumps(USER).encode(), [json.dumps(USER)]):
        request = parse_request({"messages": given, "tools": json.dumps([TOOL]), "parse": None})
        assert request.messages == tuple(USER)
        assert request.tools == (TOOL,)
        assert request.parse
    assert parse_request({"messages": USER, "tools": ""}).tools is None
    assert parse_request({"messages": USER, "tools": "[]"}).tools is None
    assert parse_request({"messages": USER, "chat_template_kwargs": '{"a": 1}'}).template_options == {"a": 1}


def test_a_whole_conversation() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    conversation = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_call_id": "1"},
        {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {}}]},
        {"role": "tool", "content": [{"name": "f", "text": "43"}]},
    ]
    assert len(parse_request({"messages": conversation}).messages or ()) == 6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "neither of text_input and messages given"),
        ({"text_input": "x", "messages": USER}, "both of text_input and messages given"),
        ({"text_input": ""}, "text_input: is empty"),
        ({"text_input": 3}, "text_input: a string is expected"),
        ({"messages": "{not json"}, "messages: not valid JSON"),
        ({"messages": "{}"}, "messages: a JSON list of objects is expected, got an object"),
        ({"messages": "[]"}, "messages: is empty"),
        ({"messages": ["hi", "ho"]}, "messages[0]: an object is expected, got a string"),
        ({"messages": [{"content": "x"}]}, "messages[0]: role is missing; it must be one of system, user"),
        ({"messages": [*USER, {"role": "robot", "content": ""}]}, 'messages[1]: unknown role "robot"'),
        ({"messages": [{"role": ["user"], "content": ""}]}, 'unknown role ["user"]'),
        ({"messages": [{"role": "user"}]}, "messages[0]: content is missing"),
        ({"messages": [{"role": "user", "content": 3}]}, "content: a string or a list of parts is expected"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "reads text only, not"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "needs a string in"),
        ({"messages": [{"role": "user", "content": "", "tool_calls": []}]}, "only an assistant message"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{}]}]},
            "an object with function.name is expected",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}]},
            "arguments are not valid JSON",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[1]"}]}]},
            "arguments must be a JSON object, not a list",
        ),
        ({"messages": USER, "tools": "nope"}, "tools: not valid JSON"),
        ({"messages": USER, "tools": {"a": 1}}, "tools: a JSON list of objects is expected"),
        ({"messages": USER, "tools": [{"type": "retrieval"}]}, 'tools[0]: unknown type "retrieval"'),
        ({"messages": USER, "tools": [{"name": "f"}]}, 'expected {"type": "function", "function"'),
        ({"messages": USER, "tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        (
            {"messages": USER, "tools": [{"function": {"name": "f", "parameters": []}}]},
            "a JSON schema object is expected, got a list",
        ),
        ({"text_input": "x", "tools": [TOOL]}, "tools: have no effect on a raw text_input"),
        (
            {"messages": USER, "exclude_input_in_output": False},
            "exclude_input_in_output: false needs text_input",
        ),
        ({"text_input": "x", "chat_template_kwargs": {"a": 1}}, "chat_template_kwargs: have no effect"),
        ({"messages": USER, "chat_template_kwargs": "[]"}, "a JSON object is expected, got a list"),
        (
            {"messages": USER, "chat_template_kwargs": {"tools": 1}},
            'chat_template_kwargs: "tools" is reserved',
        ),
        ({"mesages": USER, "text_input": "x"}, 'unknown option "mesages"; did you mean "messages"?'),
    ],
)
def test_refusals(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_request(fields)
    assert caught.value.code == "INVALID_ARGUMENT"
    assert message in caught.value.message
