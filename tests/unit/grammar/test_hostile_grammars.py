"""What strangers may send: it is refused or followed, soon, and neither ends nor hangs the process."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from grammar_walk import allowed_tokens, grammar, tokenizer, tool

from mm2c_runtime.errors import RequestError
from mm2c_runtime.grammar.guide import Guide

LIMIT = 10.0  # seconds, on a busy machine; an idle one takes under one for each


def chained(count: int, line: str, last: str) -> str:
    return "start: r0\n" + "\n".join(line.format(i, i + 1) for i in range(count)) + f"\nr{count}: {last}"


def unfolding(count: int, keyword: str) -> Any:
    """Every definition refers twice to the next."""
    twice = {f"d{i}": {keyword: [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(count)}
    return {"$ref": "#/$defs/d0", "$defs": {**twice, f"d{count}": {"type": "integer"}}}


LETTERS = "abcdefghij"
REGEXES = [
    "(a{1000}){1000}",
    "((a{0,100}){0,100}){0,100}",
    "(.*a){30}",
    ".*a.{30}",
    ".*(a.{15}b|c.{17}d|e.{19}f).*",
    "(x+x+)+y",
    "(" * 5000 + "a" + ")" * 5000,
    "|".join(f"(.*{a}.*{b}.*)" for a in LETTERS for b in LETTERS),
    "".join(f"{a}{{0,999}}" for a in LETTERS) * 20,
    "|".join(f"{a}{b}{c}{i}" for a in LETTERS for b in LETTERS for c in LETTERS for i in range(3)),
    r"\p{L}{1000}",
]
GRAMMARS = [
    'start: start "a" | "a"',
    'start: start start | "a"',
    'start: start start start | start start | "a" | ""',
    'start: x x x x x x x x y\nx: "a" |\ny: x* x* x* x* "b"',
    'start: a{0,1000}\na: b{0,1000}\nb: c{0,1000}\nc: "a"|"y"',
    chained(490, 'r{}: "a" r{}', '"a"'),
    chained(490, "r{}: " + "(" * 26 + "r{}" + ' "a")?' * 26, '"a"'),
    chained(490, 'r{}: r{} | "b"', '"a"'),
    chained(5000, 'r{}: "a" r{}', '"a"'),
    chained(60, "r{0}: r{1} r{1}", '"a"'),
    chained(60, "R{0}: R{1} R{1}", '"a"').replace("r", "R").replace("staRt", "start"),
    'start: p::0x0\np::_: "a"? p::incr([0:63]) p::incr([0:20]) | "c"',
    'start: p::0x0 // ::\np::_: p::incr([0:63]) | "c"',
    "start: T\nT: " + " & ".join(f"/(?s:.*){a}(?s:.*){b}(?s:.*)/" for a in LETTERS for b in LETTERS),
    "start: " + "(" * 40_000 + '"a"' + ")" * 40_000,
    "start: %lark {\n" * 2000,
    'start: %json {"type": "integer", "multipleOf": 1000003}',
    "start: %json " + '{"items":' * 3000 + "{}" + "}" * 3000,
    "start: %json {",
    'start: "' * 10_000,
    "%import common.INT\nstart: INT",
    '%llguidance {"no_forcing": false}\nstart: /a+/ /a+/',
    'start: "a" "b"\n%ignore /(?s:.*)/',
]
GBNF = [
    'root ::= root "a" | "b"',
    "root ::= " + "(" * 20_000,
    "root ::= r0\n" + "\n".join(f'r{i} ::= "x" | r{i + 1}' for i in range(490)) + '\nr490 ::= "z"',
    "root ::= r0\n" + "\n".join(f'r{i} ::= "x" | r{i + 1}' for i in range(2000)) + '\nr2000 ::= "z"',
    "root ::= " + " | ".join(f'"x{i}"' for i in range(5000)),
]


def nested(depth: int, keyword: str) -> Any:
    schema: Any = {"type": "integer"}
    for _ in range(depth):
        schema = (
            {"type": "array", "items": schema}
            if keyword == "items"
            else {"anyOf": [schema, {"type": "null"}]}
        )
    return schema


SCHEMAS = [
    unfolding(30, "allOf"),
    unfolding(30, "anyOf"),
    nested(90, "items"),
    nested(60, "anyOf"),
    nested(400, "items"),
    {"$ref": "#"},
    {"type": "array", "prefixItems": [{"$ref": "#"}], "minItems": 1, "items": False},
    {
        "$ref": "#/$defs/d",
        "$defs": {
            "d": {
                "allOf": [{"type": "array", "items": {"$ref": "#/$defs/d"}}, {"items": {"$ref": "#/$defs/d"}}]
            }
        },
    },
    {
        "$ref": "#/$defs/d",
        "$defs": {
            "d": {
                "allOf": [{"type": "array", "items": {"$ref": "#/$defs/d"}}, {"items": {"$ref": "#/$defs/e"}}]
            },
            "e": {
                "allOf": [{"type": "array", "items": {"$ref": "#/$defs/e"}}, {"items": {"$ref": "#/$defs/d"}}]
            },
        },
    },
    {"enum": [f"value{i * 7919 % 10_007}" for i in range(10_000)]},
    {"allOf": [{"enum": [*map(str, range(5000)), *range(5000)]}, {"enum": [*map(str, range(4000, 9000))]}]},
    {"enum": ["a" * 40], "pattern": "^(a+)+b$"},
    {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(10_000)}},
    {"type": "string", "maxLength": 10**6},
    {"type": "string", "minLength": 10**18},
    {"type": "string", "pattern": "(.*a){30}"},
    {"type": "string", "pattern": "a.{30}b"},
    {"type": "array", "items": {"type": "string", "pattern": "^(a{1000}){1000}$"}},
    {"type": "array", "minItems": 10**9},
    {"type": "integer", "multipleOf": 1_000_003},
    {"type": "number", "multipleOf": 1e-300},
    {"type": "integer", "minimum": -(10**300), "maximum": 10**300},
]


def follow(**request: Any) -> None:
    """Compiles and goes some way, `a` where it is allowed, if the request is not refused."""
    begin = time.perf_counter()
    refused = _refusal(request)
    assert time.perf_counter() - begin < LIMIT
    if refused is not None:
        assert refused.code in ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"), refused
        assert len(refused.message) < 3000


def _refusal(request: dict[str, Any]) -> RequestError | None:
    wanted = tokenizer("added tokens").token_to_id("a")
    try:
        matcher = grammar(**request)
        for _ in range(60):
            allowed = allowed_tokens(matcher)
            if matcher.is_stopped or not allowed:
                break
            matcher.advance(wanted if wanted in allowed else allowed[-1])
    except RequestError as error:
        return error
    return None


@pytest.mark.timeout(60)
@pytest.mark.parametrize("pattern", REGEXES, ids=lambda text: text[:30])
def test_regexes(pattern: str) -> None:
    follow(tools=[], choice="none", guide=Guide("regex", pattern))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("lark", GRAMMARS, ids=lambda text: text[:40])
def test_lark_grammars(lark: str) -> None:
    follow(tools=[], choice="none", guide=Guide("lark", lark))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("gbnf", GBNF, ids=lambda text: text[:30])
def test_gbnf_grammars(gbnf: str) -> None:
    follow(tools=[], choice="none", guide=Guide("gbnf", gbnf))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:40])
def test_schemas(schema: Any) -> None:
    follow(tools=[], choice="none", response_schema=schema)
    follow(tools=[tool({"type": "object", "properties": {"p": schema}, "required": ["p"]})])


@pytest.mark.timeout(60)
def test_many_choices_and_tools() -> None:
    follow(
        tools=[], choice="none", guide=Guide("choice", [f"{i * 7919 % 10_007:x}" * 4 for i in range(10_000)])
    )
    for count in (200, 2000):
        many = {f"p{i}": {"type": ["string", "integer", "object"][i % 3]} for i in range(15)}
        follow(tools=[tool({"type": "object", "properties": many}, f"tool_{i}") for i in range(count)])


def test_enumerations_of_thousands_are_followed() -> None:
    values = [f"value{i}" for i in range(5000)]
    schema = {"type": "object", "properties": {"p": {"enum": values}}, "required": ["p"]}
    assert grammar([tool(schema)]).bitmask().any()
    assert grammar([], "none", response_schema={"enum": values}).bitmask().any()
