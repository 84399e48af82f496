"""Answers bound by a grammar: calls demanded, named or forbidden, guides for the text, ends and cuts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from toy_engine import ToyExecutor, ToyTemplate, toy_engine, toy_tokenizer

from mm2c_runtime.completion import Completion, Stream
from mm2c_runtime.errors import RequestError
from mm2c_runtime.requests import parse_request

MESSAGES = [{"role": "user", "content": "hi"}]


def tool(name: str, properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


ADD = tool("add", {"n": {"type": "integer", "minimum": 0, "maximum": 99}})
PAINT = tool("paint", {"colour": {"enum": ["red", "blue"]}, "note": {"type": "string", "maxLength": 5}})
CALL = '<minimax:tool_call>\n<invoke name="{}">\n{}</invoke>\n</minimax:tool_call>'
PARAMETER = '<parameter name="{}">{}</parameter>\n'
THOUGHT = "so I think\n</think>\n\n"


def ids(text: str) -> list[int]:
    return list(toy_tokenizer().encode(text, add_special_tokens=False).ids)


class Asked:
    """A toy engine whose model wants to say ``said``, and what it answered."""

    def __init__(self, said: str, prompt: str | None = None, **executor: Any) -> None:
        self.prompt = ToyTemplate().render(MESSAGES) if prompt is None else prompt
        scripts = {tuple(ids(self.prompt)): ids(said)}
        self.executor = ToyExecutor(context=600, scripts=scripts, **executor)
        self.engine = toy_engine(self.executor)

    def __call__(self, *, stream: bool = False, **fields: Any) -> Completion:
        fields = {"messages": MESSAGES, "stream": stream, "max_tokens": 300, **fields}
        answer = Stream(lambda: None)
        self.engine.submit("a", parse_request(fields), answer.put)
        return answer.completion()


@pytest.fixture
def engines() -> Iterator[list[Asked]]:
    made: list[Asked] = []
    yield made
    for asked in made:
        asked.engine.close()


def ask(engines: list[Asked], said: str, **fields: Any) -> Completion:
    engines.append(Asked(said))
    return engines[-1](**fields)


def calls_of(completion: Completion) -> list[tuple[str, Any]]:
    return [
        (call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in completion.tool_calls
    ]


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


def test_a_strict_tool_is_enforced_where_the_model_may_choose(engines: list[Asked]) -> None:
    strict = {**ADD, "function": {**ADD["function"], "strict": True}}
    wanted = THOUGHT + "Let me see." + CALL.format("add", PARAMETER.format("n", "4200"))
    loose = ask(engines, wanted, tools=[ADD])
    assert calls_of(loose) == [("add", {"n": 4200})]
    bound = ask(engines, wanted, tools=[strict], parallel_tool_calls=False, temperature=0.8, seed=1)
    assert bound.text.startswith("Let me see.")
    ((_, arguments),) = calls_of(bound)
    assert 0 <= arguments["n"] <= 99


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


def test_min_tokens_yields_to_the_end_of_the_grammar(engines: list[Asked]) -> None:
    wanted = CALL.format("add", PARAMETER.format("n", "42"))
    found = ask(engines, THOUGHT + wanted, tools=[ADD], tool_choice="add", min_tokens=250)
    assert calls_of(found) == [("add", {"n": 42})]
    regex = {"guided_decoding_guide_type": "regex", "guided_decoding_guide": "a{2,9}"}
    long = ask(engines, THOUGHT + "aa", min_tokens=len(ids(THOUGHT)) + 6, **regex)
    assert 6 <= len(long.text) <= 9


def test_bad_words_that_the_grammar_demands_fail_the_request_with_the_reason(engines: list[Asked]) -> None:
    with pytest.raises(RequestError, match="bad_words forbids every token") as failed:
        ask(
            engines,
            THOUGHT + "aa",
            guided_decoding_guide_type="regex",
            guided_decoding_guide="a+",
            bad_words=["a"],
        )
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
