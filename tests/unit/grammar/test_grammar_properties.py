"""The grammar's language is what the parser reads back: what it allows is valid, what is valid it allows."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest
from grammar_walk import KINDS, TINY, accepts, grammar, tool, valid, walk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mm2c_runtime.chat import ChatTemplate
from mm2c_runtime.grammar import Guide
from mm2c_runtime.parsing import Message, MessageStream, parse_message

TEMPLATE = ChatTemplate.from_bundle(TINY)
# Not of JSON's beginnings, so that beside other types it is text; and nothing that NFC changes.
TEXT = st.text("ab<>/\"'\\ \n\té€😀p", max_size=12).map(lambda text: "=" + text)
MARKERS = ("<think>", "</think>", "<minimax:tool_call>", "</minimax:tool_call>", "</invoke>", "</parameter")
MARKED = st.lists(TEXT | st.sampled_from(MARKERS), max_size=4).map("".join)
NAMES = ("city", "b", "a b", "名", 'q"q', "x>y", "long_name")
SAMPLES = [
    tool(
        {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 20},
                "unit": {"enum": ["C", "F", 7, None]},
                "days": {"type": "integer", "minimum": 1, "maximum": 14},
                "who": {"$ref": "#/$defs/person"},
                "code": {"type": "string", "pattern": "^[A-Z]{2,4}$"},
                "either": {"anyOf": [{"type": "string", "maxLength": 9}, {"type": "integer", "maximum": 5}]},
            },
            "required": ["city", "who"],
            "$defs": {
                "person": {
                    "type": "object",
                    "properties": {
                        "name": {"type": "string", "minLength": 1, "maxLength": 15},
                        "age": {"type": ["number", "null"]},
                        "friends": {"type": "array", "items": {"$ref": "#/$defs/person"}, "maxItems": 2},
                    },
                    "required": ["name"],
                    "additionalProperties": False,
                }
            },
        },
        "weather",
    ),
    tool({"type": "object", "properties": {}}, "ping"),
    tool(
        {
            "type": "object",
            "properties": {
                "anything": {},
                "flag": {"type": "boolean"},
                "tags": {
                    "type": "array",
                    "items": {"type": "string", "maxLength": 8},
                    "minItems": 1,
                    "maxItems": 3,
                },
                "limits": {"type": "object", "additionalProperties": {"type": "number"}, "maxProperties": 3},
            },
            "required": ["tags"],
            "additionalProperties": {"type": "string", "maxLength": 30},
        },
        "search",
    ),
]
REQUIRED = ("city", "who", "tags")


def check(
    text: str, tools: list[dict[str, Any]], *, starts_in_reasoning: bool = False, required: bool = True
) -> Message:
    """What the parser reads in ``text``, where every call satisfies its schema and names nothing twice."""
    stream = MessageStream(tools, starts_in_reasoning=starts_in_reasoning)
    arguments: dict[int | None, str] = {}
    for delta in stream.feed(text) + stream.finish():
        if delta.kind == "arguments":
            arguments[delta.index] = arguments.get(delta.index, "") + delta.text
    message = stream.message
    assert message.incomplete is None, text
    if required:
        assert message.tool_calls, text
        assert not message.content.strip(), text
    schemas = {one["function"]["name"]: one["function"]["parameters"] for one in tools}
    for one in message.tool_calls:
        read = json.loads(arguments[one.index], object_pairs_hook=once_each)
        assert read == json.loads(one.arguments)
        assert valid(read, schemas[one.name]), (text, one.arguments)
    return message


def once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs), pairs
    return dict(pairs)


@pytest.mark.parametrize("kind", KINDS)
def test_500_walks_under_a_required_call_parse_and_validate(kind: str) -> None:
    for seed in range(250):
        check(walk(grammar(SAMPLES, kind=kind), kind, random.Random(seed), REQUIRED), SAMPLES)


@pytest.mark.parametrize("kind", KINDS)
def test_walks_after_reasoning_parse_and_validate(kind: str) -> None:
    for seed in range(25):
        matcher = grammar(SAMPLES, kind=kind, starts_in_reasoning=True)
        check(walk(matcher, kind, random.Random(seed), REQUIRED), SAMPLES, starts_in_reasoning=True)


CLOSED = [
    tool(
        {
            "type": "object",
            "properties": {
                "few": {"type": "array", "items": {"enum": [1, 2]}, "minItems": 1, "maxItems": 2},
                "pairs": {"type": "object", "additionalProperties": {"const": 0}, "maxProperties": 1},
                "id": {"enum": ["5", "a", 7, "true", "null", "[1]"]},
                "code": {"type": "string", "minLength": 9, "maxLength": 12},
                "digit": {"anyOf": [{"enum": ["5", "x"]}, {"type": "integer", "minimum": 8, "maximum": 9}]},
                "either": {
                    "anyOf": [{"enum": ["{}", "x"]}, {"type": "object", "additionalProperties": False}]
                },
            },
            "required": ["few", "id", "code", "digit"],
        },
        "closed",
    )
]
CLOSED_REQUIRED = ("few", "id", "code", "digit")


@pytest.mark.parametrize("kind", KINDS)
def test_walks_through_few_values_parse_and_validate(kind: str) -> None:
    for seed in range(100):
        check(
            walk(
                grammar(CLOSED, kind=kind), kind, random.Random(seed), CLOSED_REQUIRED, free=10 * (seed % 9)
            ),
            CLOSED,
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parallel", [True, False])
def test_walks_under_auto_are_read_back_whole(parallel: bool, kind: str) -> None:
    for seed in range(40):
        matcher = grammar(CLOSED, "auto", kind, parallel=parallel)
        random_ = random.Random(seed)
        text = walk(matcher, kind, random_, CLOSED_REQUIRED, free=25, calls=seed % 2 == 0)
        message = check(text, CLOSED, required=False)
        outside = re.sub(r"(?s)\n?<minimax:tool_call>.*?</minimax:tool_call>", "", text)
        assert message.content == outside, text
        assert parallel or len(message.tool_calls) < 2
        assert bool(message.tool_calls) == (seed % 2 == 0)


@pytest.mark.parametrize("kind", KINDS)
def test_walks_under_a_response_schema_are_json_that_validates(kind: str) -> None:
    schema = SAMPLES[0]["function"]["parameters"]
    for seed in range(50):
        message = parse_message(
            walk(grammar(None, "none", kind, response_schema=schema), kind, random.Random(seed)),
            starts_in_reasoning=False,
        )
        assert valid(json.loads(message.content), schema), message.content


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reasons", [False, True])
@pytest.mark.parametrize("guide", [Guide("json"), Guide("json_object")], ids=lambda one: one.kind)
def test_walks_under_a_json_guide_are_json(guide: Guide, reasons: bool, kind: str) -> None:
    for seed in range(20):
        matcher = grammar(None, "none", kind, guide=guide, starts_in_reasoning=reasons)
        message = parse_message(
            walk(matcher, kind, random.Random(seed), free=25), starts_in_reasoning=reasons
        )
        assert valid(json.loads(message.content), guide.schema), message


_PATTERN = r"\n*<?(minimax|think)?>?\{.{0,12}\}"
_TEXT_GUIDES = [
    Guide("regex", _PATTERN),
    Guide("choice", ["yes", "no", "</think>!", "\n\n\nwell", "<minimax:tool_call>"]),
    Guide("gbnf", 'root ::= "[" (item ("," item)*)? "]"\nitem ::= [a-z<>/]{1,5}'),
    Guide("lark", 'start: "<" start ">" | WORD\nWORD: /[a-z\\n]{1,5}/'),
]
_WHOLE = (
    _PATTERN,
    r"yes|no|</think>!|\n\n\nwell|<minimax:tool_call>",
    r"\[([a-z<>/]{1,5}(,[a-z<>/]{1,5})*)?\]",
    r"<*[a-z\n]{1,5}>*",
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reasons", [False, True])
@pytest.mark.parametrize(
    ("guide", "whole"), [*zip(_TEXT_GUIDES, _WHOLE, strict=True)], ids=lambda one: str(one)[:30]
)
def test_walks_under_a_guide_of_text_are_read_back_verbatim(
    guide: Guide, whole: str, reasons: bool, kind: str
) -> None:
    for seed in range(20):
        matcher = grammar([], "auto", kind, guide=guide, starts_in_reasoning=reasons)
        text = walk(matcher, kind, random.Random(seed), free=12 + 20 * reasons)
        message = parse_message(text, starts_in_reasoning=reasons, calls=False)
        assert re.fullmatch(whole, message.content), text
        if not reasons:
            assert message.content == text


_SCALARS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    ({"type": "string"}, MARKED),
    ({"type": "string", "minLength": 1, "maxLength": 13}, TEXT),
    ({"type": "string", "pattern": "^=[^|]*$"}, TEXT),
    (
        {"enum": ["x", "</invoke>", 'a"b', 3, None, True]},
        st.sampled_from(["x", "</invoke>", 'a"b', 3, None, True]),
    ),
    ({"const": "="}, st.just("=")),
    ({"type": "integer"}, st.integers(-(10**30), 10**30)),
    ({"type": "integer", "minimum": -3, "maximum": 1200}, st.integers(-3, 1200)),
    ({"type": "number"}, st.floats(-1e299, 1e299, allow_nan=False, allow_subnormal=False)),
    ({"type": "boolean"}, st.booleans()),
    ({"type": ["string", "null"]}, TEXT | st.none()),
    ({"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 0}]}, TEXT | st.integers(0, 99)),
    (
        {"anyOf": [{"type": "boolean"}, {"type": "array", "items": {"const": 1}}]},
        st.booleans() | st.just([1, 1]),
    ),
    ({"type": "integer", "nullable": True}, st.none() | st.integers()),
    ({"$ref": "#/$defs/tree"}, st.just({"v": 1, "next": {"next": {}}})),
    (
        {},
        st.recursive(
            st.none() | st.booleans() | st.integers() | TEXT, lambda inner: st.lists(inner, max_size=3)
        ),
    ),
]
DEFINITIONS = {
    "tree": {
        "type": "object",
        "properties": {"v": {"type": "integer"}, "next": {"$ref": "#/$defs/tree"}},
        "additionalProperties": False,
    }
}
Typed = tuple[Any, st.SearchStrategy[Any]]


def _array(inner: Typed) -> Typed:
    return {"type": "array", "items": inner[0], "maxItems": 4}, st.lists(inner[1], max_size=4)


def _record(inner: list[Typed], closed: bool) -> Typed:
    named = dict(zip(NAMES, inner, strict=False))
    schema = {
        "type": "object",
        "properties": {name: one[0] for name, one in named.items()},
        "required": NAMES[:1],
    }
    schema["required"] = [name for name in schema["required"] if name in named]
    if closed:
        schema["additionalProperties"] = False
    value = st.fixed_dictionaries(
        {name: named[name][1] for name in schema["required"]},
        optional={name: one[1] for name, one in named.items() if name not in schema["required"]},
    )
    return schema, value.flatmap(lambda made: st.permutations(list(made.items())).map(dict))


TYPED: st.SearchStrategy[Typed] = st.recursive(
    st.sampled_from(_SCALARS),
    lambda inner: (
        inner.map(_array) | st.builds(_record, st.lists(inner, min_size=1, max_size=3), st.booleans())
    ),
    max_leaves=4,
)


@st.composite
def schemas_and_calls(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    schema, values = _record(draw(st.lists(TYPED, min_size=1, max_size=5)), draw(st.booleans()))
    schema["$defs"] = DEFINITIONS
    return schema, draw(st.lists(values, min_size=1, max_size=2))


def rendered(name: str, calls: list[dict[str, Any]]) -> str:
    """What the template makes of the calls: the completion that the model was trained to write."""
    made = [{"type": "function", "function": {"name": name, "arguments": one}} for one in calls]
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": made}]
    return (
        TEMPLATE.render(messages, add_generation_prompt=False).rsplit("]~b]ai\n", 1)[1].removesuffix("[e~[\n")
    )


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(schemas_and_calls(), st.sampled_from(KINDS))
def test_rendered_calls_are_accepted(case: tuple[dict[str, Any], list[dict[str, Any]]], kind: str) -> None:
    schema, calls = case
    assert all(valid(one, schema) for one in calls)
    text = rendered("f", calls)
    assert accepts(grammar([tool(schema)], kind=kind), text, kind), text
    auto = grammar([tool(schema)], "auto", kind, starts_in_reasoning=True)
    assert accepts(auto, "So <b>.\n</think>\n\nHere:" + text, kind)


@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(schemas_and_calls(), st.sampled_from(KINDS), st.integers(0, 2**32))
def test_walks_through_random_schemas_parse_and_validate(
    case: tuple[dict[str, Any], list[dict[str, Any]]], kind: str, seed: int
) -> None:
    tools = [tool(case[0])]
    required = tuple(case[0]["required"])
    check(walk(grammar(tools, kind=kind), kind, random.Random(seed), required, free=40), tools)
