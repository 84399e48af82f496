"""Calls: which parameters, in which order, and what each value may be."""

from __future__ import annotations

from typing import Any

import pytest
from grammar_walk import KINDS, accepts, call, fits, grammar, parameter, tool

from mm2c_runtime.errors import RequestError
from mm2c_runtime.grammar import tool_grammar


def written(*names: str) -> str:
    return call("".join(parameter(name, "1") for name in names))


def test_parameters_come_in_any_order_once_each_and_the_required_ones_must() -> None:
    schema = {"type": "object", "properties": {key: {"type": "integer"} for key in "abc"}, "required": ["b"]}
    for names in ("b", "ab", "ba", "cab", "abc", "bc"):
        assert accepts(grammar([tool(schema)]), written(*names)), names
    for names in ("", "ac", "bb", "bcb", "bd"):
        assert not accepts(grammar([tool(schema)]), written(*names)), names


def test_64_parameters_at_most() -> None:
    names = [f"p{i}" for i in range(65)]
    schema = {
        "type": "object",
        "properties": {name: {"const": 1} for name in names[:64]},
        "required": names[:63],
    }
    assert accepts(grammar([tool(schema)]), written(*reversed(names[:64])))
    assert not accepts(grammar([tool(schema)]), written(*names[1:64]))
    schema["properties"][names[64]] = {}
    with pytest.raises(RequestError, match="65 members"):
        tool_grammar([tool(schema)], "required")


def test_undeclared_parameters_are_allowed_where_the_schema_says_so() -> None:
    declared = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert not accepts(grammar([tool(declared)]), written("z"))
    typed = {**declared, "additionalProperties": {"type": "integer", "maximum": 1}}
    for names in ("z", "za", "azb"):
        assert accepts(grammar([tool(typed)]), written(*names)), names
    assert not accepts(grammar([tool(typed)]), written("a", "a"))
    assert not accepts(grammar([tool(typed)]), call(parameter("z", "2")))
    for none in (None, {}, {"type": "object"}):
        assert accepts(grammar([tool(none)]), call(""))
        assert not accepts(grammar([tool(none)]), written("z"))
    assert accepts(grammar([tool({"type": "object", "additionalProperties": True})]), written("z", "y"))
    assert accepts(grammar([tool({"type": "object", "required": ["r"]})]), written("r"))


def test_references_and_combinations_at_the_top() -> None:
    schema = {
        "$ref": "#/$defs/base",
        "allOf": [{"properties": {"b": {"const": 1}}}, {"required": ["b"]}],
        "$defs": {"base": {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}},
    }
    assert accepts(grammar([tool(schema)]), written("b", "a"))
    assert not accepts(grammar([tool(schema)]), written("a"))
    either = {
        "type": "object",
        "properties": {"a": {"const": 1}, "b": {"const": 1}},
        "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
    }
    assert accepts(grammar([tool(either)]), written("b"))
    assert accepts(grammar([tool(either)]), written("b", "a"))
    assert not accepts(grammar([tool(either)]), written())


TREE = {"type": "object", "properties": {"v": {"const": 1}, "next": {"$ref": "#/properties/p"}}}
VALUES: list[tuple[Any, tuple[str, ...], tuple[str, ...]]] = [
    ({"type": "string"}, ("", " a ", '"a"', "5", "null", "</invoke>\n</parameter", "<think>"), ()),
    ({"type": "string", "maxLength": 3}, ("", "abc", "a<b", "é€😀"), ("abcd", "<think>")),
    ({"type": "string", "minLength": 2, "maxLength": 20}, ("ab", "</parameter", "a</b>c"), ("a", "x" * 21)),
    ({"type": "string", "minLength": 2}, ("ab", "</parameter", "x" * 99), ("a", "")),
    ({"type": "string", "pattern": "^[a-c]+$|z"}, ("abc", "xzx"), ("abd", "")),
    ({"type": "string", "pattern": r"^\d{2}/\w$"}, ("12/a",), ("1/a", "١٢/a", "12/é")),
    ({"type": "string", "pattern": "^a", "maxLength": 2}, ("a", "ab"), ("abc", "ba")),
    (
        {"enum": ["C", "a b", 7, None, [1, 2]]},
        ("C", "a b", "7", "null", "[1,2]", "[1, 2]"),
        ('"C"', "8", " C"),
    ),
    ({"const": "x"}, ("x",), ("y", '"x"')),
    ({"type": "integer"}, ("0", "-12", "9" * 99), ("1.0", "01", "", " 1", "1e3")),
    ({"type": "integer", "minimum": -3, "maximum": 12}, ("-3", "12"), ("-4", "13")),
    ({"type": "integer", "minimum": 0}, ("0", "12"), ("-1",)),
    ({"type": "number"}, ("1e5", "-0.5", "1e-300", "1.5e+22"), ("1e999", "01", "NaN", "Infinity")),
    ({"type": "number", "multipleOf": 0.5}, ("1.5", "2"), ("1.3",)),
    ({"type": "boolean"}, ("true", "false"), ("True", "1")),
    ({"type": "null"}, ("null",), ("None", "")),
    ({"type": ["string", "null"], "maxLength": 4}, ("null", "nul", ""), ("nulls",)),
    ({"type": "integer", "nullable": True}, ("null", "3"), ("x",)),
    (
        {"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 3}]},
        ("5", "x5", "null", ""),
        ("2", " 7", "-x"),
    ),
    ({"type": ["string", "object"]}, ("{}", '{"a": 1}', "x", "[1]"), ("{", " {}", "{a}")),
    (
        {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3},
        ("[1, 2]", "[1,2,3]"),
        ("[1]", "[1,2,3,4]", "[1,  2]"),
    ),
    (
        {"type": "array", "prefixItems": [{"type": "null"}], "items": False},
        ("[]", "[null]"),
        ("[null,null]",),
    ),
    (
        {
            "type": "object",
            "additionalProperties": {"type": "integer"},
            "minProperties": 1,
            "maxProperties": 2,
        },
        ('{"a": 1}', '{"a":1,"b": 2}'),
        ("{}", '{"a":""}', '{"a":1,"b":2,"c":3}'),
    ),
    (
        {"type": "object", "properties": {"a": {}, "b": {"const": 1}}, "required": ["b"]},
        ('{"b":1}', '{"b": 1, "a": [{}]}', '{"a":"","b":1}'),
        ("{}", '{"a":1}', '{"b":1,"b":1}', '{"b":1,"c":1}'),
    ),
    (
        {"type": "object", "properties": {"a": {}, "b": {}}, "minProperties": 1, "maxProperties": 1},
        ('{"b":1}',),
        ("{}", '{"a":1,"b":1}'),
    ),
    (
        {"type": "object", "properties": {"a": {"const": 1}}, "additionalProperties": {"type": "null"}},
        ('{"x":null,"a":1}',),
        ('{"a":null}',),
    ),
    ({"type": "object", "patternProperties": {"^x": {"type": "null"}}}, ('{"x1": null}',), ('{"y": null}',)),
    (
        {"type": "array", "items": {"type": "string"}},
        ('["</parameter"]', '["\\u00e9\\n", "<think>"]'),
        ('["</parameter>"]', '["\\ud83d"]', '["\n"]'),
    ),
    (
        {"type": "array", "items": {"type": "string", "maxLength": 14}},
        ('["a<b"]', '["</parameter"]', '["\\n\\n"]'),
        ('["</parameter>"]', f'["{"a" * 15}"]'),
    ),
    ({"type": "array", "items": {"type": "string", "format": "date"}}, ('["2025-01-31"]',), ('["x"]',)),
    ({"type": "array", "items": {"type": "string", "format": "unheard-of"}}, ('["x"]',), ()),
    (TREE, ('{"v":1,"next":{"next":{}}}',), ('{"next":{"next":1}}',)),
    ({}, ("x", '{"a": [1, null]}', "12", "", "null"), ("{", '{"a"}', "[x]")),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("schema", "good", "bad"), VALUES, ids=lambda value: str(value)[:60])
def test_values(schema: Any, good: tuple[str, ...], bad: tuple[str, ...], kind: str) -> None:
    for value in good:
        assert fits(schema, value, kind), value
    for value in bad:
        assert not fits(schema, value, kind), value


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (5, "neither an object nor a boolean"),
        ({"type": "strin"}, 'type "strin" does not exist'),
        ({"$ref": "#/$defs/nothing"}, "points to nothing"),
        ({"$ref": "http://x/y"}, "does not point into"),
        ({"$ref": "#/properties/p"}, "refers to itself"),
        ({"enum": "ab"}, "enum must be a list"),
        ({"anyOf": []}, "anyOf must be a list"),
        ({"type": "string", "minLength": -1}, "minLength"),
        ({"type": "integer", "minimum": "3"}, "minimum"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems cannot be enforced"),
        ({"not": {"type": "string"}}, "not cannot be enforced"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "string", "pattern": "a^b"}, "anchors"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "no value fits"),
        ({"enum": ["</parameter>"]}, "no value fits"),
        (False, "no value fits"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "no value fits"),
    ],
)
def test_bad_schemas_are_refused_with_the_reason(schema: Any, reason: str) -> None:
    tools = [tool({"type": "object", "properties": {"p": schema}, "required": ["p"]})]
    with pytest.raises(RequestError, match=reason) as refused:
        tool_grammar(tools, "required")
    assert refused.value.code == "INVALID_ARGUMENT"


def test_a_parameter_without_values_is_left_out_if_it_is_optional() -> None:
    schema = {"type": "object", "properties": {"a": False, "b": {"const": 1}}}
    assert accepts(grammar([tool(schema)]), written("b"))
    assert not accepts(grammar([tool(schema)]), written("a"))


def test_schemas_that_blow_up_are_refused() -> None:
    many = {"anyOf": [{"type": "integer", "minimum": i} for i in range(9)]}
    with pytest.raises(RequestError, match="combinations"):
        tool_grammar([tool({"type": "object", "properties": {"p": {"allOf": [many] * 20}}})], "required")
    deep: Any = {}
    for _ in range(5000):
        deep = {"items": deep, "type": "array"}
    for tools, schema in (([tool({"type": "object", "properties": {"p": deep}})], None), (None, deep)):
        with pytest.raises(RequestError, match="nested too deeply"):
            tool_grammar(tools, "auto", schema)


def test_a_pattern_that_is_no_regular_expression_is_refused() -> None:
    for pattern in ("(", "a\\", "[", "*", "x{9}{9}{9999999}"):
        for schema in (
            {"type": "string", "pattern": pattern},
            {"items": {"type": "string", "pattern": pattern}},
        ):
            with pytest.raises(RequestError, match=r"cannot be compiled|is no regular"):
                grammar([tool({"type": "object", "properties": {"p": schema}})])
