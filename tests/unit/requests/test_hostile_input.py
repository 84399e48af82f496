"""Input that some later stage could not carry is refused where it comes in, with the reason."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from test_generation_defaults import prepare

from mm2c_runtime.chat.template import ChatTemplate
from mm2c_runtime.errors import RequestError
from mm2c_runtime.generation_defaults import GenerationDefaults
from mm2c_runtime.json_input import MAX_DEPTH
from mm2c_runtime.requests import parse_request

USER = [{"role": "user", "content": "hi"}]


def refusal(fields: dict[str, Any]) -> str:
    with pytest.raises(RequestError) as caught:
        prepare(fields, GenerationDefaults())
    assert caught.value.code == "INVALID_ARGUMENT"
    caught.value.message.encode("utf-8")  # it can be sent back
    return caught.value.message


def said(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def tool(**function: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "f", **function}}]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text_input": "a\ud800"}, "text_input: has a lone surrogate, U+D800, at character 1"),
        (said("a\udfff"), "messages[0].content: has a lone surrogate, U+DFFF, at character 1"),
        (
            {"messages": '[{"role": "user", "content": "\\ud800"}]'},
            "messages[0].content: has a lone surrogate",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}]},
            ".content[0].text",
        ),
        (
            {"messages": USER, "tools": tool(description="\ud800")},
            "tools[0].function.description: has a lone",
        ),
        ({"messages": USER, "tools": tool(parameters={"\ud800": {}})}, "parameters: a key: has a lone"),
        ({"messages": USER, "chat_template_kwargs": {"a": "\ud800"}}, "chat_template_kwargs.a: has a lone"),
        ({"text_input": "x", "stop": "\ud800"}, "stop: has a lone surrogate"),
        ({"text_input": "x", "bad_words": ["ok", "\ud800"]}, "bad_words: has a lone surrogate"),
        ({"text_input": "x", "\ud800": 1}, 'unknown option "\\ud800"'),
        ({"text_input": "x", "max_tokens": "\ud800"}, 'max_tokens: "\\ud800" is not a number'),
        (
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [{"name": "f", "arguments": '{"a": "\\ud800"}'}]}
                ]
            },
            "messages[0].tool_calls[0].arguments.a: has a lone surrogate",
        ),
    ],
)
def test_lone_surrogates(fields: dict[str, Any], message: str) -> None:
    assert message in refusal(fields)


def test_surrogate_pairs_and_everything_else_pass() -> None:
    parse_request({"messages": '[{"role": "user", "content": "\\ud83d\\ude00 é"}]'})
    assert prepare({"text_input": "😀"}, GenerationDefaults()).prompt


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("levels", [MAX_DEPTH + 2, 900, 100_000])
@pytest.mark.parametrize("as_text", [True, False])
def test_deep_nesting(levels: int, as_text: bool) -> None:
    text = "[" * levels + "]" * levels
    deep: Any = text if as_text else nested(levels)
    schema = '{"name": "f", "parameters": {"a": ' + text + "}}"
    for fields in (
        {"messages": deep if as_text else [{**USER[0], "extra": deep}]},
        {"messages": USER, "tools": deep if as_text else tool(parameters={"a": deep})},
        {"messages": USER, "tools": f'[{{"type": "function", "function": {schema}}}]'},
        {"messages": USER, "chat_template_kwargs": '{"a": ' + text + "}" if as_text else {"a": deep}},
    ):
        assert "nested" in refusal(fields)
    arguments = {"name": "f", "arguments": '{"a": ' + text + "}"}
    assert refusal({"messages": [{"role": "assistant", "tool_calls": [arguments]}]})
    assert refusal({"text_input": "x", "sampling_parameters": '{"stop": ' + text + "}"})
    if levels < 1000:
        assert refusal({"text_input": "x", "stop_token_ids": [*nested(levels), 1.5]})
    if len(text) <= 1024:
        parse_request({"text_input": "x", "stop": text})  # text like any other


def test_a_usual_depth_passes() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(40):
        schema = {"type": "object", "properties": {"a": schema}}
    assert parse_request({"messages": USER, "tools": tool(parameters=schema)}).tools


@pytest.mark.parametrize(
    "name", ["self", "messages", "tools", "add_generation_prompt", "clean", "raise_exception"]
)
def test_template_options_that_clash(name: str) -> None:
    fields = {"messages": USER, "chat_template_kwargs": {name: 1}}
    assert refusal(fields) == f'chat_template_kwargs: "{name}" is reserved for the template itself'


@pytest.mark.parametrize("name", ["kwargs", "variables", "context", "loop", "not a name", "", "__class__"])
def test_other_template_options_reach_the_template(name: str) -> None:
    options = parse_request(
        {"messages": USER, "chat_template_kwargs": json.dumps({name: 7})}
    ).template_options
    shown = "{{ " + name + " }}" if name.isidentifier() else "{{ messages[0].content }}"
    assert ChatTemplate(shown).render(USER, **options) == ("7" if name.isidentifier() else "hi")


def test_template_options_must_be_named_by_strings() -> None:
    assert "the key 1 is not a string" in refusal({"messages": USER, "chat_template_kwargs": {1: 2}})


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 10**400},
        {"max_tokens": 10**400},
        {"max_tokens": "9" * 5000},
        {"temperature": np.array([0.5, 0.6])},
        {"temperature": {}},
        {"logprobs": {}},
        {"seed": "0x10"},
        {"timeout": 10**400},
        {"stop_token_ids": [10**30]},
        {"n": None, "best_of": "two"},
    ],
)
def test_values_no_engine_can_use(fields: dict[str, Any]) -> None:
    assert refusal({"text_input": "x", **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stop": [f"z{n}" for n in range(65)]}, "it must be at most 64 strings of at most 1,024 characters"),
        ({"stop": "z" * 1025}, "it must be at most 64 strings of at most 1,024 characters"),
        (
            {"stop": ["a"] + [f"z{n}" for n in range(40)], "stop_words": [f"y{n}" for n in range(40)]},
            "at most 64",
        ),
        ({"stop_token_ids": list(range(1025))}, "it must be at most 1,024 token ids of at least 0"),
        ({"bad_words": [f"z{n}" for n in range(1025)]}, "it must be at most 1,024 words of at most 256"),
        ({"bad_words": ["z" * 257]}, "it must be at most 1,024 words of at most 256 characters"),
    ],
)
def test_what_would_slow_every_step_down(fields: dict[str, Any], message: str) -> None:
    refused = refusal({"text_input": "x", **fields})
    assert message in refused
    assert len(refused) < 400


def test_a_prompt_token_beyond_the_vocabulary_is_refused() -> None:
    """The tokenizer may know more tokens than the model."""
    small = GenerationDefaults()
    assert prepare({"text_input": "!", "bad_words": ["~"]}, small, vocab=10).bad_words == ()
    with pytest.raises(RequestError, match="INVALID_ARGUMENT: the prompt has token"):
        prepare({"text_input": "~"}, small, vocab=10)
