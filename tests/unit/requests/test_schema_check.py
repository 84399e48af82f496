"""Schemas that make no sense are refused with their place; those that clients really send are not."""

from __future__ import annotations

from typing import Any

import pytest

from mm2c_runtime.errors import RequestError
from mm2c_runtime.requests import parse_request, tools_of
from mm2c_runtime.schema_check import check_schema


def wrapped(schema: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"p": schema}}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        True,
        {"type": ["string", "null"], "description": "x", "default": None, "title": "X", "examples": [1]},
        {
            "type": "dict",
            "properties": {"a": {"type": "float"}, "b": {"type": "any"}, "c": {"type": "tuple"}},
        },
        {"type": "string", "enum": None, "items": None, "required": True},
        {"anyOf": [{"$ref": "#/$defs/a~1b"}, {"type": "null"}]},
        {"type": "array", "items": [{"type": "integer"}], "additionalItems": False, "minItems": 1.0},
        {"type": "object", "additionalProperties": {"type": "number"}, "required": []},
        {"type": "number", "exclusiveMinimum": True, "minimum": 0, "multipleOf": 0.5},
        {"const": None},
        {"$ref": "#"},
    ],
)
def test_what_clients_send_passes(schema: Any) -> None:
    check_schema("s", {**wrapped(schema), "$defs": {"a/b": {"type": "string"}}})


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("string", r"s\.properties\.p: invalid schema: a schema is an object or a boolean, not a string"),
        ({"type": "strin"}, r's\.properties\.p\.type: invalid schema: "strin" is no JSON type; .*"string"'),
        ({"type": []}, r"p\.type: invalid schema: \[\] is no JSON type"),
        ({"type": {"a": 1}}, "is no JSON type"),
        ({"type": ["string", 7]}, "7 is no JSON type"),
        ({"properties": []}, r"p\.properties: invalid schema: is an object of schemas by name, not a list"),
        ({"properties": {"q": 1}}, r"p\.properties\.q: invalid schema: a schema is"),
        ({"required": "q"}, r"p\.required: invalid schema: is a list of names"),
        ({"required": [1]}, r"p\.required"),
        ({"anyOf": []}, r"p\.anyOf: invalid schema: is a list of schemas that is not empty"),
        ({"oneOf": {"type": "string"}}, r"p\.oneOf"),
        ({"items": 3}, r"p\.items: invalid schema"),
        ({"additionalProperties": "no"}, r"p\.additionalProperties"),
        ({"enum": "a"}, r"p\.enum"),
        ({"enum": []}, r"p\.enum"),
        ({"minimum": "1"}, r"p\.minimum: invalid schema: is a number, not a string"),
        ({"maxLength": -1}, r"p\.maxLength"),
        ({"minItems": 1.5}, r"p\.minItems"),
        ({"multipleOf": 0}, r"p\.multipleOf: invalid schema: is a number greater than 0"),
        ({"pattern": ["a"]}, r"p\.pattern"),
        ({"$ref": 3}, r"p\.\$ref"),
        ({"$ref": "#/$defs/none"}, "points nowhere"),
        ({"$ref": "https://example.org/x.json"}, "nothing is fetched"),
    ],
)
def test_nonsense_is_named_with_its_place(schema: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message) as refused:
        check_schema("s", wrapped(schema))
    assert refused.value.code == "INVALID_ARGUMENT"


def test_tools_are_checked_though_nothing_is_enforced() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": wrapped({"type": "strin"})}}]
    with pytest.raises(RequestError, match=r"tools\[0\]\.function\.parameters\.properties\.p\.type"):
        tools_of(tools)
    with pytest.raises(RequestError, match="is no JSON type"):
        parse_request({"messages": [{"role": "user", "content": "x"}], "tools": tools})
    assert tools_of([{"name": "f", "parameters": None}, {"name": "g"}]) is not None


def test_strict_is_a_boolean() -> None:
    """Taken for false, anything else would be served unbound."""
    for strict in ("true", 1, {}):
        with pytest.raises(RequestError, match=r"tools\[0\]\.function\.strict: must be true or false"):
            tools_of([{"type": "function", "function": {"name": "f", "strict": strict}}])
    for strict in (True, False, None):
        assert tools_of([{"type": "function", "function": {"name": "f", "strict": strict}}]) is not None


def test_a_large_schema_takes_no_recursion() -> None:
    schema: Any = {"type": "string"}
    for _ in range(95):
        schema = {"type": "array", "items": schema}
    check_schema("s", {"anyOf": [schema] * 200})
