"""Cleaning what clients send as history."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from mm2c_runtime.chat import ChatTemplate, clean_messages, clean_tools
from mm2c_runtime.errors import RequestError

TEMPLATE = ChatTemplate.from_bundle(Path(__file__).parents[2] / "fixtures" / "tiny-m2")


def assistant(**given: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": "", **given}


def call(arguments: Any) -> list[dict[str, Any]]:
    return [{"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}]


def cleaned(message: dict[str, Any]) -> dict[str, Any]:
    return clean_messages([message])[0]


@pytest.mark.parametrize("arguments", ['{"a": {"b": [1]}}', {"a": {"b": [1]}}])
def test_arguments_become_an_object(arguments: Any) -> None:
    for calls in (call(arguments), [{"name": "f", "arguments": arguments}]):
        [given] = cleaned(assistant(tool_calls=calls))["tool_calls"]
        assert (given.get("function") or given)["arguments"] == {"a": {"b": [1]}}


@pytest.mark.parametrize("arguments", ["", " ", None, "{}", {}])
def test_no_arguments(arguments: Any) -> None:
    assert cleaned(assistant(tool_calls=call(arguments)))["tool_calls"] == call({})


@pytest.mark.parametrize(
    "arguments", ["[1]", "5", "null", '"a"', "{", "{'a': 1}", '{"a": NaN}', [1], 5, "[" * 99999]
)
def test_arguments_that_are_no_object_are_refused(arguments: Any) -> None:
    with pytest.raises(RequestError, match=r"INVALID_ARGUMENT: messages\[0\]\.tool_calls\[0\]\.arguments"):
        cleaned(assistant(tool_calls=call(arguments)))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, ""),
        ("a", "a"),
        ([], ""),
        ([{"type": "text", "text": "a"}, "b", {"type": "input_text", "text": "\n"}], "ab\n"),
    ],
)
@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_content_becomes_text(role: str, content: Any, text: str) -> None:
    given = cleaned({"role": role, "content": content})
    if role == "tool" and isinstance(given["content"], list):
        assert "".join(part["text"] for part in given["content"]) == text
    else:
        assert given == {"role": role, "content": text}
    if role == "assistant":
        assert cleaned({"role": role}) == {"role": role, "content": ""}
    else:
        with pytest.raises(RequestError, match=r"messages\[0\]: content is missing"):
            cleaned({"role": role})


def test_every_part_of_a_tools_result_is_a_response_of_its_own() -> None:
    calls = [{"role": "user", "content": "u"}, assistant(tool_calls=call({}))]
    parts = [
        "a",
        {"type": "text", "text": "b", "name": "f"},
        {"type": "input_text", "text": "c"},
        {"output": "d"},
    ]
    shown = TEMPLATE.render([*calls, {"role": "tool", "content": parts}])
    assert "".join(f"\n<response>{text}\n</response>" for text in "abcd") in shown
    typed = [{"type": "text", "text": text} for text in "ab"]
    result = {"role": "tool", "content": typed}
    assert TEMPLATE.render([*calls, result]) == TEMPLATE.render([*calls, result], clean=False)
    assert "<response></response>" in TEMPLATE.render([*calls, {"role": "tool", "content": []}])


def test_every_output_of_a_tool_is_a_response_of_its_own() -> None:
    history = [
        {"role": "user", "content": "u"},
        assistant(tool_calls=call({})),
        {"role": "tool", "content": [{"output": "x"}, {"output": "y"}]},
    ]
    assert TEMPLATE.render(history).count("<response>") == 2
    assert TEMPLATE.render(history) == TEMPLATE.render(history, clean=False)
    for wrong in ([{"output": 5}], [{"output": "x"}, {"type": "image_url"}]):
        with pytest.raises(RequestError, match=r"messages\[2\]\.content\[. ?\]"):
            TEMPLATE.render([*history[:2], {"role": "tool", "content": wrong}])


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_under_any_name_is_rendered(name: str) -> None:
    history = [{"role": "user", "content": "u"}, assistant(**{name: "why"})]
    assert "<think>\nwhy\n</think>\n\n" in TEMPLATE.render(history)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (None, "messages must be a list"),
        ([], "messages must be a list of at least one"),
        ({"role": "user"}, "messages must be a list"),
        (["hi"], r"messages\[0\] must be an object"),
        (
            [{"content": "x"}],
            r"messages\[0\]\.role is missing; it must be one of system, user, assistant, tool",
        ),
        ([{"role": "user", "content": "", "tool_calls": []}], "only an assistant message has tool calls"),
        ([{"role": "robot"}], r'messages\[0\]\.role is "robot"'),
        ([{"role": ["user"]}], r"messages\[0\]\.role"),
        ([{"role": "user", "content": 5}], r"messages\[0\]\.content must be a string"),
        ([{"role": "user", "content": {"a": 1}}], r"messages\[0\]\.content must be a string"),
        (
            [{"role": "user", "content": [{"type": "image_url"}]}],
            r'content\[0\] has type "image_url"; .* text only',
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], r"content\[0\]\.text must be a string"),
        ([{"role": "user", "content": [5]}], r"content\[0\] must be"),
        ([assistant(reasoning=["x"])], "the reasoning must be a string"),
        ([assistant(tool_calls={"name": "f"})], "tool_calls must be a list"),
        ([assistant(tool_calls=[5])], r"tool_calls\[0\] must be an object"),
        (
            [assistant(tool_calls=[{"function": {"arguments": "{}"}}])],
            r"tool_calls\[0\] must name its function",
        ),
        ([{"role": "user", "content": object()}], r"messages\[0\]\.content is a object, which is not JSON"),
    ],
)
def test_history_without_a_rendering_is_refused(messages: Any, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as refusal:
        TEMPLATE.render(messages)
    assert refusal.value.code == "INVALID_ARGUMENT"


def test_the_template_may_refuse_with_its_own_reason() -> None:
    with pytest.raises(RequestError, match="A tool message must follow") as refusal:
        TEMPLATE.render([{"role": "user", "content": "u"}, {"role": "tool", "content": "x"}])
    assert refusal.value.code == "INVALID_ARGUMENT"


def test_raw_history_reaches_the_template_as_it_is() -> None:
    template = ChatTemplate("{{ messages[0].content }}|{{ messages[0].reasoning_content }}")
    assert template.render([{"role": "user", "content": None, "reasoning": "r"}], clean=False) == "None|r"
    assert template.render([{"role": "user", "content": None}]) == "|"
    with pytest.raises(RequestError, match="INVALID_ARGUMENT"):
        TEMPLATE.render([assistant(tool_calls=call('{"a": 1}'))], clean=False)


def test_tools_are_wrapped_and_checked() -> None:
    function = {"name": "f", "parameters": {"type": "object"}}
    wrapped = {"type": "function", "function": function}
    assert clean_tools([function, wrapped, {"type": "function", **function}]) == [wrapped] * 3
    assert clean_tools(None) is clean_tools([]) is None
    for tools, reason in (
        ({}, "must be a list"),
        ([5], r"tools\[0\] must be an object"),
        ([{"type": "web_search"}], "only function tools"),
        ([{"function": {}}], "must name its function"),
        ([{"name": "f", "parameters": "{}"}], "parameters must be a JSON schema"),
    ):
        with pytest.raises(RequestError, match=reason):
            clean_tools(tools)


def test_the_callers_data_is_left_as_it_is() -> None:
    history = [{"role": "user", "content": ["a"]}, assistant(tool_calls=call('{"a": 1}'), reasoning="r")]
    before = copy.deepcopy(history)
    clean_messages(history)
    assert history == before


def test_subclasses_lose_what_they_add() -> None:
    class Loud(str):
        def shout(self) -> str:
            return "!"

    template = ChatTemplate("{{ messages[0].content.shout is defined }}")
    assert template.render([{"role": "user", "content": Loud("a")}], clean=False) == "False"
