"""Calls demanded, named, forbidden, strict; reasoning skipped; cuts; refusals before a token is made."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
from asked_engine import ADD, CALL, MESSAGES, PAINT, PARAMETER, THOUGHT, Asked, ask, calls_of, ids, tool
from toy_engine import ToyTemplate

from mm2c_runtime.completion import Stream
from mm2c_runtime.errors import RequestError
from mm2c_runtime.requests import parse_request


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("choice", ["required", "paint", {"type": "function", "function": {"name": "paint"}}])
def test_a_demanded_call_is_made_though_the_model_would_rather_talk(
    engines: list[Asked], choice: Any, temperature: float, stream: bool
) -> None:
    found = ask(
        engines,
        THOUGHT + "I will not call anything at all.",
        tools=[ADD, PAINT],
        tool_choice=choice,
        temperature=temperature,
        seed=3,
        parallel_tool_calls=False,
        stream=stream,
    )
    assert found.reasoning == "so I think" or temperature
    assert found.text.strip("\n") == ""
    assert found.finish_reason == "tool_calls"
    ((name, arguments),) = calls_of(found)
    if choice != "required":
        assert name == "paint"
    if name == "add":
        assert 0 <= arguments["n"] <= 99
    else:
        assert arguments["colour"] in ("red", "blue")
        assert len(arguments["note"]) <= 5


def test_what_the_model_wants_and_the_grammar_allows_is_said(engines: list[Asked]) -> None:
    wanted = CALL.format("add", PARAMETER.format("n", "42"))
    found = ask(engines, THOUGHT + wanted, tools=[ADD, PAINT], tool_choice="required")
    assert calls_of(found) == [("add", {"n": 42})]
    # Nothing but the end may follow the block, so no step is spent on the end token.
    assert found.num_output_tokens == len(ids(THOUGHT + wanted))


def test_an_end_token_ends_an_answer_that_could_go_on(engines: list[Asked]) -> None:
    found = ask(engines, THOUGHT + "Hello.", tools=[{**ADD, "function": {**ADD["function"], "strict": True}}])
    assert (found.text, found.finish_reason) == ("Hello.", "stop")
    assert found.num_output_tokens == len(ids(THOUGHT + "Hello.")) + 1


def test_one_call_only(engines: list[Asked]) -> None:
    invoke = f'<invoke name="add">\n{PARAMETER.format("n", "1")}</invoke>\n'
    two = f"<minimax:tool_call>\n{invoke}{invoke}</minimax:tool_call>"
    assert len(ask(engines, THOUGHT + two, tools=[ADD]).tool_calls) == 2
    assert len(ask(engines, THOUGHT + two, tools=[ADD], parallel_tool_calls=False).tool_calls) == 1
    assert len(ask(engines, THOUGHT + two, tools=[ADD], tool_choice="required").tool_calls) == 2
    assert len(ask(engines, THOUGHT + two, tools=[ADD], tool_choice="add").tool_calls) == 1


def test_without_parallel_calls_the_schemas_are_as_free_as_before(engines: list[Asked]) -> None:
    unenforceable = tool("odd", {"n": {"not": {"const": 1}}})
    wanted = CALL.format("odd", PARAMETER.format("n", "42"))
    found = ask(engines, THOUGHT + wanted, tools=[unenforceable], parallel_tool_calls=False)
    assert calls_of(found) == [("odd", {"n": 42})]


def test_a_forbidden_call_is_not_made_and_not_offered(engines: list[Asked]) -> None:
    offered: list[Any] = []

    class Template(ToyTemplate):
        def render(self, messages: Any, tools: Any = None, *rest: Any, **kwargs: Any) -> str:
            offered.append(tools)
            return super().render(messages, tools, *rest, **kwargs)

    wanted = THOUGHT + "Well: " + CALL.format("add", PARAMETER.format("n", "42"))
    engines.append(Asked(wanted))
    engines[0].engine.preparer.template = Template()
    assert calls_of(engines[0](tools=[ADD])) == [("add", {"n": 42})]
    found = engines[0](tools=[ADD], tool_choice="none", max_tokens=40)
    assert found.tool_calls == []
    assert found.text.startswith("Well: ")
    assert offered == [[ADD], None]
    alone = engines[0](tool_choice="none", max_tokens=40)  # a model may make up tools, too
    assert (alone.tool_calls, alone.token_ids) == ([], found.token_ids)


def test_a_strict_tool_is_enforced_where_the_model_may_choose(engines: list[Asked]) -> None:
    strict = {**ADD, "function": {**ADD["function"], "strict": True}}
    wanted = THOUGHT + "Let me see." + CALL.format("add", PARAMETER.format("n", "4200"))
    loose = ask(engines, wanted, tools=[ADD])
    assert calls_of(loose) == [("add", {"n": 4200})]
    bound = ask(engines, wanted, tools=[strict], parallel_tool_calls=False, temperature=0.8, seed=1)
    assert bound.text.startswith("Let me see.")
    ((_, arguments),) = calls_of(bound)
    assert 0 <= arguments["n"] <= 99


def test_a_strict_tool_does_not_bind_those_beside_it(engines: list[Asked]) -> None:
    strict = {**ADD, "function": {**ADD["function"], "strict": True}}
    for schema in ({"not": {"const": 1}}, {"type": "integer", "maximum": 5}):
        odd = tool("odd", {"n": schema})
        wanted = CALL.format("odd", PARAMETER.format("n", "42") + PARAMETER.format("more", "x"))
        found = ask(engines, THOUGHT + wanted, tools=[strict, odd])
        assert calls_of(found) == [("odd", {"n": 42, "more": "x"})]
        with pytest.raises(RequestError) if "not" in schema else nullcontext():
            ask(engines, THOUGHT + wanted, tools=[strict, odd], tool_choice="required")


def test_reasoning_can_be_skipped(engines: list[Asked]) -> None:
    prompt = ToyTemplate().render(MESSAGES).rstrip("\n") + "\n</think>\n\n"
    engines.append(Asked("<think>no, I must</think>Hi!", prompt=prompt))
    found = engines[0](skip_reasoning=True)
    assert found.reasoning == ""
    assert found.num_input_tokens == len(ids(prompt))
    assert "<think>" not in found.text  # the token that would open it again cannot be sampled
    wanted = CALL.format("add", PARAMETER.format("n", "42"))
    engines.append(Asked(wanted, prompt=prompt))
    again = engines[1](tools=[ADD], tool_choice="add", skip_reasoning=True)
    assert (again.reasoning, calls_of(again)) == ("", [("add", {"n": 42})])


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_cut_by_the_limit_is_no_call(engines: list[Asked], stream: bool) -> None:
    long = tool("write", {"text": {"type": "string"}})
    wanted = THOUGHT + CALL.format("write", PARAMETER.format("text", "a </invoke> " + "word " * 90))
    engines.append(Asked(wanted))
    answer = Stream(lambda: None)
    fields = {"messages": MESSAGES, "tools": [long], "tool_choice": "required", "max_tokens": 100}
    engines[0].engine.submit("a", parse_request({**fields, "stream": stream}), answer.put)
    found = answer.completion()
    assert found.finish_reason == "length"
    assert found.num_output_tokens == 100
    assert found.incomplete is not None
    assert (found.incomplete["name"], found.incomplete["parameter"]) == ("write", "text")
    if not stream:
        assert found.tool_calls == []


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"tools": [ADD], "tool_choice": "sub"}, "sub.*add"),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tools": [ADD], "tool_choice": {"type": "custom"}}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": 3}, "tool_choice"),
        ({"tools": [tool("odd", {"n": {"not": {}}})], "tool_choice": "required"}, "not"),
        ({"response_format": {"type": "jsonschema"}}, "json_schema"),
        ({"response_format": {"type": "json_schema"}}, "json_schema"),
        ({"response_format": "[1]"}, "a JSON object is expected"),
        ({"guided_decoding_guide": "a"}, "guided_decoding_guide_type"),
        ({"guided_decoding_guide_type": "regexp", "guided_decoding_guide": "a"}, "regex"),
        ({"guided_decoding_guide_type": "regex", "guided_decoding_guide": "(a"}, "compile"),
        ({"guided_decoding_guide_type": "lark_grammar", "guided_decoding_guide": "start: nothing"}, "compile"),
        (
            {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
            "an answer has one form",
        ),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"tools": [tool("many", {f"p{i}": {} for i in range(65)})], "tool_choice": "required"}, "64"),
    ],
)  # fmt: skip
def test_what_cannot_be_enforced_is_refused_before_a_token_is_made(
    engines: list[Asked], fields: dict[str, Any], reason: str
) -> None:
    with pytest.raises(RequestError, match=reason) as refused:
        ask(engines, "x", **fields)
    assert refused.value.code == "INVALID_ARGUMENT"
    assert engines[0].executor.batches == []
