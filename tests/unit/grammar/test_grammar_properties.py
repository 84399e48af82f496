"""The grammar's language is what the parser reads back: what it allows is valid, what is valid it allows."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from grammar_walk import KINDS, TINY, accepts, grammar, tool, valid, walk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mm2c_runtime.chat import ChatTemplate
from mm2c_runtime.parsing import parse_message

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


def check(text: str, tools: list[dict[str, Any]], *, starts_in_reasoning: bool = False) -> None:
    message = parse_message(text, tools, starts_in_reasoning=starts_in_reasoning)
    assert message.incomplete is None, text
    assert message.tool_calls, text
    assert not message.content.strip(), text
    schemas = {one["function"]["name"]: one["function"]["parameters"] for one in tools}
    for one in message.tool_calls:
        schema = schemas[one.name]
        assert valid(json.loads(one.arguments), schema, schema), (text, one.arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_500_walks_under_a_required_call_parse_and_validate(kind: str) -> None:
    for seed in range(250):
        check(walk(grammar(SAMPLES, kind=kind), kind, random.Random(seed), REQUIRED), SAMPLES)


@pytest.mark.parametrize("kind", KINDS)
def test_walks_after_reasoning_parse_and_validate(kind: str) -> None:
    for seed in range(25):
        matcher = grammar(SAMPLES, kind=kind, starts_in_reasoning=True)
        check(walk(matcher, kind, random.Random(seed), REQUIRED), SAMPLES, starts_in_reasoning=True)


@pytest.mark.parametrize("kind", KINDS)
def test_walks_under_a_response_schema_are_json_that_validates(kind: str) -> None:
    schema = SAMPLES[0]["function"]["parameters"]
    for seed in range(50):
        message = parse_message(
            walk(grammar(None, "none", kind, response_schema=schema), kind, random.Random(seed)),
            starts_in_reasoning=False,
        )
        assert valid(json.loads(message.content), schema, schema), message.content


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
    assert all(valid(one, schema, schema) for one in calls)
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
