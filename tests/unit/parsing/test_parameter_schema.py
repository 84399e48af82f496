"""A parameter's text read by its JSON schema."""

from __future__ import annotations

import json
from typing import Any

import pytest
from completions import arguments, block, invoke, tool

from mm2c_runtime.parsing import parse_message

STRING, INTEGER, NUMBER, NULL = ({"type": name} for name in ("string", "integer", "number", "null"))


def read(schema: Any, text: str, **parameters: Any) -> Any:
    tools = [tool("f", {"p": schema}, **parameters)]
    [(_, given)] = arguments(parse_message(block(invoke("f", p=text)), tools))
    return given["p"]


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        (INTEGER, "5", 5),
        (INTEGER, "\n 5 \n", 5),
        (INTEGER, "-0", 0),
        (INTEGER, "123456789012345678901234567890", 123456789012345678901234567890),
        (NUMBER, "5", 5),
        (NUMBER, "1.50", 1.5),
        (NUMBER, "1e3", 1000.0),
        ({"type": "boolean"}, " true", True),
        (NULL, "null", None),
        ({"type": "array"}, '[1, "a"]', [1, "a"]),
        ({"type": "object"}, '{"a": {"b": null}}', {"a": {"b": None}}),
        ({"type": "object"}, '{\n  "a": 1\n}', {"a": 1}),
        ({"type": "INTEGER"}, "5", 5),
        ({"type": "int"}, "5", 5),
        ({"type": "str"}, "5", "5"),
    ],
)
def test_a_value_is_read_by_its_type(schema: Any, text: str, value: Any) -> None:
    given = read(schema, text)
    assert given == value
    assert type(given) is type(value)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (INTEGER, "five"),
        (INTEGER, "5,000"),
        (INTEGER, "05"),
        (INTEGER, "5.5"),
        (INTEGER, ""),
        (INTEGER, '"5"'),
        (INTEGER, " x "),
        (INTEGER, "1" * 5000),
        (NUMBER, "NaN"),
        (NUMBER, "Infinity"),
        (NUMBER, "-Infinity"),
        (NUMBER, "1e999"),
        ({"type": "boolean"}, "True"),
        ({"type": "boolean"}, "1"),
        ({"type": "array"}, '{"a": 1}'),
        ({"type": "array"}, "[1, 2"),
        ({"type": "array"}, "[NaN]"),
        ({"type": "array"}, "[" * 100_000),
        ({"type": "object"}, "{'a': 1}"),
        (NULL, "None"),
        (False, "5"),
        ({"allOf": [INTEGER, STRING]}, "5"),
    ],
)
def test_what_fits_no_declared_type_stays_text(schema: Any, text: str) -> None:
    assert read(schema, text) == text


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": ["string", "null"]}, "null", None),
        ({"type": ["string", "null"]}, " null or not ", " null or not "),
        ({"type": ["string", "null"]}, '"quoted"', '"quoted"'),
        ({"type": ["string", "integer"]}, "5", 5),
        ({"type": ["string", "integer"]}, "5.5", "5.5"),
        ({"type": "string", "nullable": True}, "null", None),
        ({"type": "integer", "nullable": True}, "null", None),
        ({"type": "integer", "nullable": False}, "null", "null"),
        ({"anyOf": [STRING, NULL]}, "null", None),
        ({"anyOf": [STRING, {"type": "array"}]}, "[1]", [1]),
        ({"anyOf": [INTEGER, {"type": "boolean"}]}, "true", True),
        ({"anyOf": [INTEGER, {"type": "boolean"}]}, "1.5", "1.5"),
        ({"oneOf": [{"type": "object"}, INTEGER]}, "{}", {}),
        ({"type": "integer", "anyOf": [{"minimum": 1}, {"maximum": -1}]}, "5", 5),
        ({"allOf": [{"type": ["integer", "null"]}, {"type": ["integer", "string"]}]}, "5", 5),
        ({"allOf": [{"type": ["integer", "null"]}, {"type": ["integer", "string"]}]}, "null", "null"),
        ({"allOf": [{"type": ["integer", "string"]}, {"type": "string"}]}, "5", "5"),
        ({}, "5", 5),
        (True, "[1]", [1]),
        ({"description": "anything"}, " text ", " text "),
        ({"type": "no such type"}, "5", 5),
    ],
)
def test_unions_and_intersections(schema: Any, text: str, value: Any) -> None:
    assert read(schema, text) == value


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"enum": ["a", "b"]}, "a", "a"),
        ({"enum": ["1", "2"]}, "1", "1"),
        ({"type": "string", "enum": ["a"]}, " a", " a"),
        ({"enum": [1, 2]}, " 1 ", 1),
        ({"enum": [1, "2"]}, "2", "2"),
        ({"enum": ["a", None]}, "null", None),
        ({"enum": ["a", None]}, "\na\n", "a"),
        ({"enum": ["a", None]}, '"a"', "a"),
        ({"enum": [1, 2]}, "3", 3),
        ({"enum": [1, 2]}, "x", "x"),
        ({"enum": [True, "x"]}, "1", "1"),
        ({"enum": [[1, {"a": 1}], "x"]}, '[1.0, {"a": 1}]', [1.0, {"a": 1}]),
        ({"const": 5}, "5", 5),
        ({"const": "5"}, "5", "5"),
        ({"const": None}, "null", None),
        ({"anyOf": [{"const": "1"}, {"const": 2}]}, "1", "1"),
        ({"anyOf": [{"const": "1"}, {"const": 2}]}, "2", 2),
        ({"type": "string", "nullable": True, "enum": ["a"]}, "null", None),
    ],
)
def test_choices(schema: Any, text: str, value: Any) -> None:
    assert read(schema, text) == value


DEFS = {
    "count": {"type": "integer"},
    "a/b~c d": {"type": "string"},
    "alias": {"$ref": "#/$defs/count"},
    "loop": {"$ref": "#/$defs/loop"},
    "tree": {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/tree"}}, {"$ref": "#/$defs/count"}]},
}


@pytest.mark.parametrize(
    ("reference", "text", "value"),
    [
        ("#/$defs/count", "5", 5),
        ("#/$defs/alias", "5", 5),
        ("#/$defs/a~1b~0c%20d", "5", "5"),
        ("#/properties/p/anyOf/0", "5", "5"),
        ("#/$defs/tree", "[[5]]", [[5]]),
        ("#/$defs/tree", "x", "x"),
        ("#/$defs/loop", "5", 5),
        ("#/$defs/absent", "5", 5),
        ("https://example.com/schema", "5", 5),
        (7, "5", 5),
    ],
)
def test_references(reference: Any, text: str, value: Any) -> None:
    schema = (
        {"$ref": reference, "anyOf": [{"type": "string"}]}
        if "anyOf" in str(reference)
        else {"$ref": reference}
    )
    assert read(schema, text, **{"$defs": DEFS}) == value


def test_additional_properties_and_combined_parameters() -> None:
    assert read({}, "5") == 5
    combined = {"allOf": [{"$ref": "#/$defs/base"}], "$defs": {"base": {"properties": {"q": STRING}}}}
    tools = [
        tool("a", additionalProperties=STRING),
        tool("b", additionalProperties=False),
        tool("c", {"p": INTEGER}, **combined),
        tool("d", anyOf=[{"properties": {"p": INTEGER}}, {"properties": {"p": NULL}}]),
        tool("e", {"p": STRING}, anyOf=[{"properties": {"p": {"minLength": 1}}}, {"required": ["p"]}]),
    ]
    text = block(
        invoke("a", p="5"),
        invoke("b", p="5"),
        invoke("c", p="5", q="5"),
        invoke("d", p="null"),
        invoke("e", p="5"),
    )
    assert arguments(parse_message(text, tools)) == [
        ("a", {"p": "5"}),
        ("b", {"p": 5}),
        ("c", {"p": 5, "q": "5"}),
        ("d", {"p": None}),
        ("e", {"p": "5"}),
    ]


def test_numbers_are_passed_on_digit_for_digit() -> None:
    tools = [tool("f", {"p": NUMBER, "q": INTEGER})]
    message = parse_message(block(invoke("f", p="0.10000000000000000001", q="5.0")), tools)
    assert message.tool_calls[0].arguments == '{"p": 0.10000000000000000001, "q": 5}'


def test_a_schema_that_fans_out_or_nests_without_end_is_read_in_time() -> None:
    fan = {
        f"n{i}": {"anyOf": [{"$ref": f"#/$defs/n{i + 1}"}, {"$ref": f"#/$defs/n{i + 1}"}]} for i in range(60)
    }
    assert read({"$ref": "#/$defs/n0"}, "5", **{"$defs": {**fan, "n60": INTEGER}}) == 5
    nested: Any = INTEGER
    for _ in range(5000):
        nested = {"anyOf": [nested]}
    assert read(nested, "5") == 5
    assert read({}, "5", allOf=[nested]) == 5


def test_lone_surrogates_in_json_values_can_be_sent() -> None:
    message = parse_message(block(invoke("f", p='["\ud800"]')))
    message.tool_calls[0].arguments.encode()
    assert json.loads(message.tool_calls[0].arguments) == {"p": ["\ud800"]}
