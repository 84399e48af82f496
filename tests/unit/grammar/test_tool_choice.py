"""What a completion may consist of: reasoning, content, calls or a JSON answer, by tool_choice."""

from __future__ import annotations

from typing import Any

import pytest
from grammar_walk import (
    EOS,
    KINDS,
    accepts,
    allowed_tokens,
    call,
    follows,
    grammar,
    parameter,
    tokenizer,
    tool,
)

from mm2c_runtime.errors import RequestError
from mm2c_runtime.grammar import tool_grammar

TOOLS = [
    tool({"type": "object", "properties": {"s": {"type": "string"}}, "required": ["s"]}),
    tool({"type": "object", "properties": {}}, "g"),
]
CALL, OTHER = call(parameter("s", "x")), call("", "g")
THOUGHT = "I think.\n</think>\n\n"


@pytest.mark.parametrize("kind", KINDS)
class TestModes:
    def test_required_admits_newlines_and_a_block_and_then_only_the_end(self, kind: str) -> None:
        for text in (CALL, CALL[1:], "\n\n\n" + CALL):
            matcher = grammar(TOOLS, kind=kind)
            assert follows(matcher, text, kind)
            assert matcher.is_stopped
            assert allowed_tokens(matcher) == [tokenizer(kind).token_to_id(EOS)]
            matcher.advance(tokenizer(kind).token_to_id(EOS))
        for text in ("", "I call. " + CALL, " " + CALL, CALL + "\n", CALL + CALL, THOUGHT + CALL):
            assert not accepts(grammar(TOOLS, kind=kind), text, kind)

    def test_named_admits_that_tool_only(self, kind: str) -> None:
        for choice in (
            "g",
            {"type": "function", "function": {"name": "g"}},
            {"type": "function", "name": "g"},
        ):
            assert accepts(grammar(TOOLS, choice, kind), OTHER, kind)
            assert not accepts(grammar(TOOLS, choice, kind), CALL, kind)

    def test_auto_admits_text_and_calls_anywhere(self, kind: str) -> None:
        for text in ("", "Hello <b>", CALL, "Let me see." + CALL + "\n\nDone.", CALL + OTHER):
            assert accepts(grammar(TOOLS, "auto", kind), text, kind), text
        for text in (call("", "h"), call(""), CALL[:-1], "a" + CALL.replace('"s"', '"t"')):
            assert not accepts(grammar(TOOLS, "auto", kind), text, kind), text

    def test_none_admits_text_without_calls(self, kind: str) -> None:
        assert accepts(grammar(TOOLS, "none", kind), "Hello <minimax:tool_", kind)
        assert not accepts(grammar(TOOLS, "none", kind), CALL, kind)

    def test_reasoning_comes_first_where_the_prompt_opened_it(self, kind: str) -> None:
        for text in (THOUGHT + CALL, "\n</think>" + CALL, "I call at once." + CALL):
            assert accepts(grammar(TOOLS, kind=kind, starts_in_reasoning=True), text, kind), text
        assert not accepts(grammar(TOOLS, kind=kind, starts_in_reasoning=True), THOUGHT + "x" + CALL, kind)
        auto = grammar(TOOLS, "auto", kind, starts_in_reasoning=True)
        assert accepts(auto, THOUGHT + "Well," + CALL + "and", kind)
        assert accepts(grammar(TOOLS, "none", kind, starts_in_reasoning=True), THOUGHT + "Well", kind)
        assert not accepts(grammar(TOOLS, "none", kind, starts_in_reasoning=True), "I call" + CALL, kind)

    def test_parallel_calls_can_be_forbidden(self, kind: str) -> None:
        two = CALL.replace("</minimax", '<invoke name="g">\n</invoke>\n</minimax')
        assert accepts(grammar(TOOLS, kind=kind), two, kind)
        for choice in ("required", "auto"):
            assert accepts(grammar(TOOLS, choice, kind, parallel=False), CALL, kind)
            assert not accepts(grammar(TOOLS, choice, kind, parallel=False), two, kind)
        assert not accepts(grammar(TOOLS, "auto", kind, parallel=False), CALL + OTHER, kind)

    def test_without_tools_any_name_and_parameter_is_accepted(self, kind: str) -> None:
        text = call(parameter("p q", "</invoke>\n5") + parameter("n", '{"a": 1}'), "any_thing")
        assert accepts(grammar(None, kind=kind), text, kind)
        assert accepts(grammar(None, "any_thing", kind), text, kind)
        assert not accepts(grammar(None, "other", kind), text, kind)
        assert not accepts(grammar(None, kind=kind), call("", ""), kind)

    def test_a_response_schema_admits_json_or_calls(self, kind: str) -> None:
        schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
        for text in ('{"a": "b"}', '\n\n{"a":"<think>"}', CALL):
            assert accepts(grammar(TOOLS, "auto", kind, response_schema=schema), text, kind), text
        for text in ("", "x", "{}", '{"a": "b"} ', '{"a": "b"}' + CALL, '{"a": "</think>"}', '{"a":  "b"}'):
            assert not accepts(grammar(TOOLS, "auto", kind, response_schema=schema), text, kind), text
        assert not accepts(grammar(TOOLS, "none", kind, response_schema=schema), CALL, kind)
        assert not accepts(grammar(TOOLS, "required", kind, response_schema=schema), '{"a": "b"}', kind)
        after = grammar(TOOLS, "none", kind, response_schema=schema, starts_in_reasoning=True)
        assert accepts(after, THOUGHT + '{"a":"b"}', kind)


def test_markers_are_single_tokens_where_the_tokenizer_has_them_as_added_tokens() -> None:
    made = tokenizer("added tokens")
    matcher = grammar(TOOLS)
    block = made.token_to_id("<minimax:tool_call>")
    assert block in allowed_tokens(matcher)
    spelled = [token for token in allowed_tokens(matcher) if made.decode([token]).startswith("<")]
    assert spelled in ([], [block])
    # as bytes, the same text is no block
    ids = [
        i for piece in ("<", "minimax:tool_call>") for i in made.encode(piece, add_special_tokens=False).ids
    ]
    assert grammar(TOOLS).follows(ids) == 0


def test_reasoning_and_text_do_not_hold_markers_spelled_out() -> None:
    made = tokenizer("added tokens")
    for options in ({"starts_in_reasoning": True}, {}):
        ids = made.encode("a </think", add_special_tokens=False).ids
        matcher = grammar(TOOLS, "auto", **options)
        assert matcher.follows(ids) == len(ids)
        ids += made.encode(">", add_special_tokens=False).ids
        assert matcher.follows(ids) == len(ids) - 1


@pytest.mark.parametrize(
    ("tools", "choice", "reason"),
    [
        (TOOLS, "h", "names h"),
        (TOOLS, {"type": "function", "function": {"name": "h"}}, "names h"),
        (TOOLS, {"type": "function"}, "tool_choice must be"),
        (TOOLS, {"type": "custom", "name": "f"}, "type 'custom'"),
        (TOOLS, 5, "tool_choice must be"),
        ([], "required", "no tools"),
        ("f", "auto", "must be a list"),
        ([tool({"type": "object"}, 'a">b')], "auto", "cannot be a name"),
        ([tool({"type": "object"}, "a\n>b")], "auto", "cannot be a name"),
        ([tool({"type": "object"}, "\ud800")], "auto", "not Unicode"),
        ([tool({"type": "object", "properties": {"": {}}})], "auto", "cannot be a name"),
    ],
)
def test_bad_requests_are_refused_with_the_reason(tools: Any, choice: Any, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as refused:
        tool_grammar(tools, choice)
    assert refused.value.code == "INVALID_ARGUMENT"


def test_names_that_the_parser_reads_back_are_allowed() -> None:
    for name in ('a"b', "a>b", "a b", "名前", "it's"):
        assert accepts(grammar([tool({"type": "object", "properties": {}}, name)]), call("", name))


def test_no_tools_and_no_requirement_leaves_text() -> None:
    assert accepts(grammar([], "auto"), "Hello")
    assert not follows(grammar([], "auto"), CALL)


def test_what_cannot_be_enforced_is_told_with_its_place() -> None:
    schema = {"type": "object", "properties": {"n": {"not": {"const": 1}}}}
    with pytest.raises(RequestError, match="tool f, parameter n: the schema keyword not"):
        tool_grammar([tool(schema, "f")], "required")
    with pytest.raises(RequestError, match="the response schema: the schema keyword not"):
        tool_grammar(None, "none", {"not": {"const": 1}})
