"""Guides: which answers each kind admits, where they stand, and which requests are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from grammar_walk import KINDS, accepts, allowed_tokens, call, follows, grammar, tool

from mm2c_runtime.errors import RequestError
from mm2c_runtime.grammar.guide import (
    MOST_CHARACTERS,
    Guide,
    guide_from_guided_decoding,
    guide_from_response_format,
    guide_from_structured_outputs,
)

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
GBNF = 'root ::= "yes" | "no" tail\ntail ::= [!?]+ # loud\n'
LARK = 'start: verb " " NOUN\nverb: "eat" | "sell"\nNOUN: /[a-z]+/\n'
TOOLS = [tool({"type": "object", "properties": {}}, "g")]
# A guide of each kind, whole answers, and what none begins with or is.
ANSWERS: list[tuple[Guide, tuple[str, ...], tuple[str, ...]]] = [
    (Guide("json_schema", SCHEMA), ('{"a":1}', '{"a": -5}'), ('{"a":""}', "{}", "1", '{"a":1} ')),
    (Guide("json_object"), ("{}", '{"a": [1, {"b": null}]}'), ("[]", "1", "", "{} ")),
    (Guide("json"), ("{}", '[1,"x"]', "null", '"s"', "-1.5"), ("", "x", "{]", "[1] ")),
    (Guide("regex", "[a-c]+|x/y\\d"), ("abc", "x/y5"), ("", "abd", "abc\n", "\nabc", "x/y")),
    (Guide("regex", "^(?i)ok$|.*?!"), ("OK", "no\t!", "!"), ("okay", "a\n!", "^ok")),
    (Guide("regex", "(?s).{2}"), ("\n\n", "é😀", "<a"), ("a", "abc")),
    (Guide("regex", ""), ("",), ("a",)),
    (
        Guide("choice", ["a", "ab", 'x "y"\n/z', "</think>"[:7], "é"]),
        ("a", "ab", 'x "y"\n/z', "é"),
        ("", "b", "aba", " a"),
    ),
    (Guide("choice", ["", "a", "a"]), ("", "a"), ("aa",)),
    (Guide("gbnf", GBNF), ("yes", "no?", "no!?!"), ("", "no", "yes!", "root")),
    (Guide("gbnf", 'root ::= "\\u0041\\u4e2d" [\\u0030-\\u0032]'), ("A中1",), ("A中3",)),
    (Guide("lark", LARK), ("eat fish", "sell s"), ("eat", "eat  fish", "eat fish ")),
    (
        Guide("lark", 'start: "a" r0 T0\nr0: "b"\nT0: "c"\n%ignore /[ ]+/\n'),
        ("abc", "a b  c"),
        ("ab", "abcc"),
    ),
    (Guide("lark", 'start: "(" start ")" | "x"'), ("x", "((x))"), ("(x", "()")),
    (Guide("lark", 'start: %json {"type": "integer", "minimum": 3}'), ("3", "70"), ("2", '"3"')),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("guide", "good", "bad"), ANSWERS, ids=lambda value: str(value)[:50])
def test_answers(guide: Guide, good: tuple[str, ...], bad: tuple[str, ...], kind: str) -> None:
    between = ("", "\n", "\n\n") if guide.is_json else ("\n\n",)
    for text in good:
        assert accepts(grammar([], "auto", kind, guide=guide), text, kind), text
        for newlines in between:
            after = grammar([], "none", kind, guide=guide, starts_in_reasoning=True)
            assert accepts(after, f"So <b>.\n</think>{newlines}{text}", kind), text
    for text in bad:
        assert not accepts(grammar([], "auto", kind, guide=guide), text, kind), text
        after = grammar([], "none", kind, guide=guide, starts_in_reasoning=True)
        assert not accepts(after, f"So.\n</think>\n\n{text}", kind), text


@pytest.mark.parametrize("kind", KINDS)
def test_after_reasoning_an_answer_that_begins_with_newlines_keeps_them(kind: str) -> None:
    guide = Guide("regex", r"\n*x")
    for newlines, allowed in (("\n\n", True), ("\n\n\n", True), ("\n", False), ("", False)):
        matcher = grammar([], "none", kind, guide=guide, starts_in_reasoning=True)
        assert accepts(matcher, f"Hm</think>{newlines}x", kind) is allowed


@pytest.mark.parametrize("guide", [one for one, _, _ in ANSWERS if one.is_json], ids=lambda one: one.kind)
def test_json_stands_beside_calls(guide: Guide) -> None:
    for options in ({}, {"starts_in_reasoning": True}):
        before = "So</think>" if options else ""
        assert accepts(grammar(TOOLS, "auto", guide=guide, **options), before + call("", "g"))
        assert accepts(grammar(TOOLS, "auto", guide=guide, **options), before + '\n\n{"a":1}')
        assert not accepts(grammar(TOOLS, "none", guide=guide, **options), before + call("", "g"))
        assert not follows(grammar(TOOLS, "required", guide=guide, **options), before + "{")


@pytest.mark.parametrize("choice", ["auto", "required", "g"])
def test_text_does_not_stand_beside_calls(choice: str) -> None:
    for guide in (Guide("regex", "a"), Guide("choice", ["a"]), Guide("gbnf", GBNF), Guide("lark", LARK)):
        with pytest.raises(RequestError, match=r"INVALID_ARGUMENT: .*set tool_choice to none"):
            grammar(TOOLS, choice, guide=guide)
        assert grammar(TOOLS, "none", guide=guide)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("regx", "a", 'did you mean "regex"'),
        ("json_schema", 5, "is an object or a boolean, not a number"),
        ("regex", None, "must be a string"),
        ("regex", "(", "(?s)cannot be compiled: .*unclosed group"),
        ("regex", "(?=a)b", "look-around"),
        ("regex", r"(a)\1", "backreferences are not supported"),
        ("regex", r"\bx", "lookarounds not supported"),
        ("regex", "a\\", "ends in a backslash"),
        ("regex", "a" * (MOST_CHARACTERS["regex"] + 1), "at most 20,000"),
        ("regex", "\ud800", "lone surrogate"),
        ("choice", [], "at least one string"),
        ("choice", "ab", "must be a list"),
        ("choice", ["a", 5], "choice 1 must be a string, not a number"),
        ("choice", ["\ud800"], "lone surrogate"),
        ("choice", [str(i) for i in range(10_001)], "10,001 choices"),
        ("choice", ["a" * 200_001], "at most"),
        ("gbnf", "x ::= y", "Rule 'y' not found"),
        ("gbnf", 'x ::= "y"', "No 'root' rule"),
        ("gbnf", 'root ::= "y', "Unexpected end"),
        ("gbnf", 'root ::= "\\uD800"', "surrogate"),
        ("gbnf", 'root ::= "\\U00200000"', "no character"),
        ("gbnf", "root ::= " + "(" * 9_000, "nested too deeply"),
        ("lark", "", "cannot be compiled"),
        ("lark", "start: nothing", 'unknown name: "nothing"'),
        ("lark", "start: @guide2", "unknown grammar"),
        ("lark", 'start: "a" }\nx: {', "expecting rule"),
        ("lark", "%import python.NAME\nstart: NAME", "import"),
        ("lark", "start: <nothing>", "unknown special token"),
        ("lark", "start: <[99999999]>", "too large"),
        ("lark", "start: /a/ & /b/", "only supported for tokens"),
    ],
)
def test_guides_that_make_no_sense_are_refused_with_the_reason(name: Any, value: Any, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as refused:
        grammar([], "none", guide=Guide(name, value))
    assert refused.value.code == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    "guide",
    [
        Guide("regex", r"[^\s\S]"),
        Guide("lark", "start: start"),
        Guide("lark", 'T: "a" & "b"\nstart: T'),
        Guide("lark", "start: a\na: b\nb: a"),
    ],
    ids=lambda one: str(one.value),
)
def test_a_dead_end_is_the_requests_fault(guide: Guide) -> None:
    with pytest.raises(RequestError, match="INVALID_ARGUMENT: the grammar has a dead end"):
        grammar([], "none", guide=guide).bitmask()


@pytest.mark.parametrize("lark", ['start: "a" start', "start: /a+/ /a+/", "start: /a*/ start"])
def test_a_grammar_that_never_ends_is_followed_and_never_complete(lark: str) -> None:
    matcher = grammar([], "none", guide=Guide("lark", lark))
    assert follows(matcher, "aaa" * 20)
    assert not matcher.is_accepting
    assert allowed_tokens(matcher)


def test_response_format() -> None:
    read = guide_from_response_format
    assert read(None) is None
    assert read({"type": "text"}) is None
    assert read({"type": "json_object"}) == Guide("json_object")
    described = {"name": "n", "schema": SCHEMA, "strict": True}
    assert read({"type": "json_schema", "json_schema": described}) == Guide("json_schema", SCHEMA)


def test_guided_decoding() -> None:
    read = guide_from_guided_decoding
    assert read("json") == Guide("json")
    assert (
        read("json_schema", json.dumps(SCHEMA)) == read("json_schema", SCHEMA) == Guide("json_schema", SCHEMA)
    )
    assert read("regex", "a+") == Guide("regex", "a+")
    assert read("ebnf_grammar", GBNF) == Guide("gbnf", GBNF)
    assert read("lark_grammar", LARK) == Guide("lark", LARK)


def test_structured_outputs() -> None:
    read = guide_from_structured_outputs
    assert read(None) is None
    assert (
        read({"json": SCHEMA})
        == read({"json": json.dumps(SCHEMA), "regex": None})
        == Guide("json_schema", SCHEMA)
    )
    assert read({"regex": "a+", "json_object": False}) == Guide("regex", "a+")
    assert read({"choice": ["a", "b"]}) == Guide("choice", ["a", "b"])
    assert read({"grammar": GBNF}) == Guide("gbnf", GBNF)
    assert read({"grammar": LARK}) == Guide("lark", LARK)
    assert read({"json_object": True}) == Guide("json_object")


@pytest.mark.parametrize(
    ("read", "arguments", "reason"),
    [
        (guide_from_response_format, ("json",), "response_format: must be an object, not a string"),
        (guide_from_response_format, ({},), r"response_format.type: null is not one of text"),
        (guide_from_response_format, ({"type": "json_objct"},), 'did you mean "json_object"'),
        (guide_from_response_format, ({"type": "json_schema"},), "response_format.json_schema: is missing"),
        (
            guide_from_response_format,
            ({"type": "json_schema", "json_schema": {"name": "n"}},),
            "schema: is missing",
        ),
        (
            guide_from_response_format,
            ({"type": "json_schema", "json_schema": {"schema": "x"}},),
            "response_format.json_schema.schema: a JSON schema is an object or a boolean, not a string",
        ),
        (
            guide_from_guided_decoding,
            ("ebnf", "x"),
            'guide_type: "ebnf" is not one of .*did you mean "ebnf_grammar"',
        ),
        (guide_from_guided_decoding, (None,), "guide_type: null is not one of"),
        (guide_from_guided_decoding, ("json", "{}"), "use type json_schema"),
        (guide_from_guided_decoding, ("regex",), "guided_decoding_guide: is missing; type regex needs it"),
        (guide_from_guided_decoding, ("json_schema", "{"), "guided_decoding_guide: not valid JSON"),
        (guide_from_guided_decoding, ("regex", "a" * 20_001), "guided_decoding_guide: regex has 20,001"),
        (guide_from_structured_outputs, ([],), "structured_outputs: must be an object, not a list"),
        (guide_from_structured_outputs, ({},), "exactly one of .*; given: none"),
        (guide_from_structured_outputs, ({"json": {}, "regex": "a"},), "given: json, regex"),
        (
            guide_from_structured_outputs,
            ({"choices": ["a"]},),
            'structured_outputs.choices: .*did you mean "choice"',
        ),
        (guide_from_structured_outputs, ({"json_object": 1},), "must be true or false, not a number"),
        (
            guide_from_structured_outputs,
            ({"choice": [1]},),
            "structured_outputs.choice: choice 0 must be a string",
        ),
        (guide_from_structured_outputs, ({"json": "{"},), "structured_outputs.json: not valid JSON"),
        (
            guide_from_structured_outputs,
            ({"grammar": 5},),
            "structured_outputs.grammar: lark must be a string",
        ),
    ],
)
def test_requests_that_make_no_sense_are_refused_by_name(
    read: Any, arguments: tuple[Any, ...], reason: str
) -> None:
    with pytest.raises(RequestError, match=reason) as refused:
        read(*arguments)
    assert refused.value.code == "INVALID_ARGUMENT"
