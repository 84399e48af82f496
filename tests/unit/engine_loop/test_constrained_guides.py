"""Guides for the text of an answer, and where an answer that a grammar binds ends."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from asked_engine import ADD, CALL, PARAMETER, THOUGHT, Asked, ask, calls_of, ids

from mm2c_runtime.errors import RequestError

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"type": "integer", "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
        {"guided_decoding_guide_type": "json_schema", "guided_decoding_guide": json.dumps(SCHEMA)},
        {"structured_outputs": {"json": SCHEMA}},
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_of_a_schema(engines: list[Asked], fields: dict[str, Any], stream: bool) -> None:
    found = ask(engines, THOUGHT + "It rains in Bergen.", stream=stream, **fields)
    assert found.reasoning == "so I think"
    assert (found.text[0], found.text[-1]) == ("{", "}")
    value = json.loads(found.text)
    assert set(value) == {"city", "days"}
    assert value["days"] <= 9
    assert found.finish_reason == "stop"


def test_any_object(engines: list[Asked]) -> None:
    found = ask(engines, THOUGHT + '{"a": [1, 2]}', response_format={"type": "json_object"})
    assert json.loads(found.text) == {"a": [1, 2]}
    assert ask(engines, THOUGHT + "free", response_format={"type": "text"}).text == "free"


def test_a_schema_beside_tools_lets_the_model_call(engines: list[Asked]) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    wanted = CALL.format("add", PARAMETER.format("n", "42"))
    assert calls_of(ask(engines, THOUGHT + wanted, tools=[ADD], response_format=form)) == [("add", {"n": 42})]
    answered = ask(engines, THOUGHT + '{"city": "Oslo", "days": 2}', tools=[ADD], response_format=form)
    assert json.loads(answered.text) == {"city": "Oslo", "days": 2}


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"guided_decoding_guide_type": "regex", "guided_decoding_guide": "[0-9]{3}-[a-f]+x"}, "[0-9]{3}-[a-f]+x"),
        ({"structured_outputs": {"regex": "[0-9]{3}-[a-f]+x"}}, "[0-9]{3}-[a-f]+x"),
        ({"structured_outputs": {"choice": ["yes", "no", "don't (know)"]}}, r"yes|no|don't \(know\)"),
        (
            {"guided_decoding_guide_type": "ebnf_grammar", "guided_decoding_guide": 'root ::= "a" [0-9] root | "!"'},
            "(a[0-9])*!",
        ),
        (
            {"guided_decoding_guide_type": "lark_grammar", "guided_decoding_guide": 'start: "p" Q\nQ: /q{2,4}/ "."'},
            r"pq{2,4}\.",
        ),
    ],
)  # fmt: skip
def test_guides_bind_the_whole_text_of_a_raw_prompt_and_what_follows_reasoning(
    engines: list[Asked], fields: dict[str, Any], pattern: str
) -> None:
    for temperature in (0.0, 1.0):
        engines.append(Asked("nothing of the kind", prompt="p"))
        raw = engines[-1](messages=None, text_input="p", temperature=temperature, seed=5, **fields)
        if raw.finish_reason == "stop":
            assert re.fullmatch(pattern, raw.text)
        else:
            assert raw.num_output_tokens == 300
        talk = ask(engines, THOUGHT + "hmm", temperature=temperature, seed=6, max_tokens=500, **fields)
        if talk.finish_reason == "stop":
            assert re.fullmatch(pattern, talk.text)


def test_markers_in_guided_text_are_text(engines: list[Asked]) -> None:
    wanted = "a <minimax:tool_call> b </think> c"
    spelled = re.sub(r"[<>]", lambda match: f"[{match[0]}]", wanted)
    found = ask(
        engines,
        THOUGHT + wanted,
        guided_decoding_guide_type="regex",
        guided_decoding_guide=spelled.replace("/", r"\/"),
    )
    assert found.text == wanted
    assert found.tool_calls == []


def test_min_tokens_yields_to_the_end_of_the_grammar(engines: list[Asked]) -> None:
    wanted = CALL.format("add", PARAMETER.format("n", "42"))
    found = ask(engines, THOUGHT + wanted, tools=[ADD], tool_choice="add", min_tokens=250)
    assert calls_of(found) == [("add", {"n": 42})]
    regex = {"guided_decoding_guide_type": "regex", "guided_decoding_guide": "a{2,9}"}
    long = ask(engines, THOUGHT + "aa", min_tokens=len(ids(THOUGHT)) + 6, **regex)
    assert 6 <= len(long.text) <= 9


@pytest.mark.parametrize(("pattern", "word"), [("a+", "a"), ("xyz", "xyz")])
@pytest.mark.parametrize("min_tokens", [0, 99])
def test_bad_words_that_the_grammar_demands_fail_the_request_with_the_reason(
    engines: list[Asked], pattern: str, word: str, min_tokens: int
) -> None:
    guide = {"guided_decoding_guide_type": "regex", "guided_decoding_guide": pattern}
    with pytest.raises(RequestError, match="bad_words forbids every token") as failed:
        ask(engines, THOUGHT + word, bad_words=[word], min_tokens=min_tokens, **guide)
    assert failed.value.code == "INVALID_ARGUMENT"


def test_a_grammar_that_turns_out_too_complex_is_the_client_s_to_change(engines: list[Asked]) -> None:
    """Not RESOURCE_EXHAUSTED, upon which clients send the same again."""
    engines.append(Asked("a" * 290, prompt="p"))
    with pytest.raises(RequestError, match="too complex") as failed:
        engines[0](messages=None, text_input="p", structured_outputs={"regex": "((a{1,500}){1,500}){1,500}"})
    assert failed.value.code == "INVALID_ARGUMENT"


def test_stop_tokens_end_where_the_grammar_lets_them(engines: list[Asked]) -> None:
    (stop,) = ids("!")
    regex = {"guided_decoding_guide_type": "regex", "guided_decoding_guide": "[a-z]+"}
    found = ask(engines, THOUGHT + "abc!def", stop_token_ids=[stop], **regex)
    assert (found.text, found.finish_reason) == ("abc", "stop")
    forever = ask(engines, THOUGHT + "abc", ignore_eos=True, max_tokens=60, **regex)
    assert re.fullmatch("[a-z]+", forever.text)
    assert forever.finish_reason == "length"
    wanted = CALL.format("add", PARAMETER.format("n", "42"))
    whole = ask(engines, THOUGHT + wanted, tools=[ADD], tool_choice="add", ignore_eos=True)
    assert (calls_of(whole), whole.finish_reason) == ([("add", {"n": 42})], "tool_calls")
