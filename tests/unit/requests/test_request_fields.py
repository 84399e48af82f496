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


def test_what_the_template_can_render_is_no_reason_to_refuse() -> None:
    """There is one set of rules: what cleaning a history accepts, a request may hold."""
    bare = parse_request({"messages": USER, "tools": [TOOL["function"]]})
    assert bare.tools == (TOOL,)
    for kind in ("input_text", "output_text", "text"):
        parts = [{"type": kind, "text": "a"}, "b"]
        assert parse_request({"messages": [{"role": "user", "content": parts}]}).messages == (
            {"role": "user", "content": "ab"},
        )
    result = {"role": "tool", "content": [{"output": "x"}, {"name": "f", "text": "y"}]}
    messages = parse_request({"messages": [*USER, result]}).messages or ()
    assert messages[1]["content"] == [{"output": "x"}, {"output": "y"}]
    again = parse_request({"messages": list(messages)})
    assert again.messages == messages


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "neither of text_input and messages given"),
        ({"text_input": "x", "messages": USER}, "both of text_input and messages given"),
        ({"text_input": ""}, "text_input: is empty"),
        ({"text_input": 3}, "text_input: a string is expected"),
        ({"messages": "{not json"}, "messages: not valid JSON"),
        (
            {"messages": '[{"role": "user", "content": "x", "n": NaN}]'},
            "messages: not valid JSON (NaN is not",
        ),
        ({"messages": [{**USER[0], "n": float("inf")}]}, "messages[0].n: inf is not a JSON value"),
        ({"messages": "{}"}, "messages must be a list of at least one message, not an object"),
        ({"messages": "[]"}, "messages must be a list of at least one message"),
        ({"messages": ["hi", "ho"]}, "messages[0] must be an object"),
        ({"messages": [{"content": "x"}]}, "messages[0].role is missing; it must be one of system, user"),
        ({"messages": [*USER, {"role": "robot", "content": ""}]}, 'messages[1].role is "robot"; it must be'),
        ({"messages": [{"role": ["user"], "content": ""}]}, 'messages[0].role is ["user"]; it must be'),
        ({"messages": [{"role": "user"}]}, "messages[0]: content is missing"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content must be a string, a list of"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "this model reads text only"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text must be a string",
        ),
        ({"messages": [{"role": "user", "content": "", "tool_calls": []}]}, "only an assistant message"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{}]}]},
            "messages[0].tool_calls[0] must name its function",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}]},
            "messages[0].tool_calls[0].arguments: not valid JSON",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[1]"}]}]},
            "messages[0].tool_calls[0].arguments must be a JSON object, not [1]",
        ),
        ({"messages": USER, "tools": "nope"}, "tools: not valid JSON"),
        ({"messages": USER, "tools": {"a": 1}}, "tools must be a list of objects, not an object"),
        (
            {"messages": USER, "tools": [{"type": "retrieval"}]},
            'tools[0].type is "retrieval"; only function tools exist',
        ),
        ({"messages": USER, "tools": [{"nam": "f"}]}, 'tools[0] must name its function: {"type": "function"'),
        (
            {"messages": USER, "tools": [{"type": "function", "function": {}}]},
            "tools[0] must name its function",
        ),
        (
            {"messages": USER, "tools": [{"function": {"name": "f", "parameters": []}}]},
            "tools[0]: parameters must be a JSON schema, that is an object",
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
        (
            {"messages": USER, "sampling_parameters": {"tools": []}},
            "sampling_parameters: tools is an input of its own",
        ),
        ({"mesages": USER, "text_input": "x"}, 'unknown option "mesages"; did you mean "messages"?'),
    ],
)
def test_refusals(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_request(fields)
    assert caught.value.code == "INVALID_ARGUMENT"
    assert message in caught.value.message
