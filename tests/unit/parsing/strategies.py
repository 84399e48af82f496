"""What the parser's property tests draw: hostile text, JSON values, schemas with values that they admit, and
conversations whose calls fit their tools."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

MARKERS = ("<think>", "</think>", "<minimax:tool_call>", "</minimax:tool_call>", "</invoke>", "</parameter>")
PIECES = (
    *MARKERS,
    *('<invoke name="f">', "<invoke name='g'>", "<invoke name=f>", "<invoke ", "<invoke", '<invoke name="f'),
    *(
        '<parameter name="s">',
        '<parameter name="n">',
        "<parameter name=o>",
        "<parameter",
        '<parameter name="',
    ),
    *('<invoke name="f" x="y">', "<parameter name='s' type=\"string\">", ' a="', ' b=">'),
    *(
        "<thi",
        "</thin",
        "<minimax:tool",
        "</inv",
        "</para",
        "<",
        ">",
        '"',
        "'",
        "\\",
        "\n",
        "\n\n",
        " ",
        "a",
        "12",
    ),
    *("é", "😀", "\ud83d", "\ude00", "{", "}", "[1]", "null", "true", "NaN", "x" * 30),
)
Draw = Callable[[st.SearchStrategy[Any]], Any]
# A value's schema, and the values that it admits and that the template writes in only one reading.
Typed = tuple[Any, st.SearchStrategy[Any]]


def examples(count: int) -> settings:
    """The same ``count`` examples on every run; MM2C_EXAMPLES=20 draws twenty times as many, at random."""
    times = int(os.environ.get("MM2C_EXAMPLES", "1"))
    quiet = list(HealthCheck)
    return settings(
        max_examples=count * times, derandomize=times == 1, deadline=None, suppress_health_check=quiet
    )


garbage = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)
sizes = st.lists(st.integers(1, 9), min_size=1, max_size=5)


def text_without(*forbidden: str) -> st.SearchStrategy[str]:
    """Hostile text that holds none of these markers."""
    pieces = [piece for piece in PIECES if piece not in forbidden]
    free = st.one_of(st.sampled_from(pieces), st.text(max_size=5))
    return st.lists(free, max_size=8).map("".join).filter(lambda text: not any(m in text for m in forbidden))


def is_plain_text(value: Any) -> bool:
    """Anything but a string that is JSON, which neither NaN nor Infinity is."""
    if not isinstance(value, str):
        return True
    try:
        json.loads(value, parse_constant=lambda name: json.loads(""))
    except ValueError:
        return True
    return False


string_values = text_without("</parameter>")
integers = st.integers(-(10**30), 10**30)
numbers = st.one_of(integers, st.floats(allow_nan=False, allow_infinity=False))
scalars: st.SearchStrategy[Any] = st.one_of(st.none(), st.booleans(), numbers, string_values)
json_values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(string_values, inner, max_size=3)),
    max_leaves=6,
)
arrays, objects = st.lists(json_values, max_size=3), st.dictionaries(string_values, json_values, max_size=3)
LEAVES: tuple[Typed, ...] = (
    ({"type": "string"}, string_values),
    ({"type": "string", "minLength": 0}, string_values),
    (
        {"enum": ["a", " b\n", "</invoke>", "5", "null"]},
        st.sampled_from(["a", " b\n", "</invoke>", "5", "null"]),
    ),
    ({"const": " 7"}, st.just(" 7")),
    ({"type": "integer"}, integers),
    ({"type": "number"}, numbers),
    ({"type": "boolean"}, st.booleans()),
    ({"type": "null"}, st.none()),
    ({"type": "array"}, arrays),
    ({"type": "object", "additionalProperties": {"type": "integer"}}, objects),
    ({"const": [1, "a", {"b": None}]}, st.just([1, "a", {"b": None}])),
    ({"enum": [1, "1", None, "x", [2]]}, st.sampled_from([1, None, "x", [2]])),
    ({"type": ["string", "array"]}, st.one_of(arrays, string_values).filter(is_plain_text)),
    ({}, json_values.filter(is_plain_text)),
    (True, json_values.filter(is_plain_text)),
)
LEAF_VALUES = st.sampled_from(LEAVES)


def typed(draw: Draw, depth: int, defs: dict[str, Any]) -> Typed:
    """A random schema, at most ``depth`` keywords deep; what it refers to is added to ``defs``."""
    kind = (
        draw(st.sampled_from(("leaf", "ref", "union", "all", "null", "array", "object"))) if depth else "leaf"
    )
    if kind == "leaf":
        return draw(LEAF_VALUES)  # type: ignore[no-any-return]
    schema, values = typed(draw, depth - 1, defs)
    if kind == "ref":
        name = f"{draw(st.sampled_from(('plain', 'a/b~c d', 'é%')))}{len(defs)}"
        defs[name] = schema
        return {"$ref": "#/$defs/" + quote(name.replace("~", "~0").replace("/", "~1"))}, values
    if kind == "union":
        other, more = typed(draw, depth - 1, defs)
        keyword = draw(st.sampled_from(("anyOf", "oneOf")))
        return {keyword: [schema, other]}, st.one_of(values, more).filter(is_plain_text)
    if kind == "all":
        every = ["string", "number", "boolean", "null", "array", "object"]
        return {
            "allOf": [schema, draw(st.sampled_from(({"description": "…"}, {"type": every}, True)))]
        }, values
    if kind == "null":
        known = {"description": "…"} if schema is True else schema
        return {**known, "nullable": True}, st.one_of(values, st.none()).filter(is_plain_text)
    if kind == "array":
        return {"type": "array", "items": schema}, st.lists(values, max_size=3)
    return {"type": "object", "properties": {"k": schema}}, st.fixed_dictionaries({}, optional={"k": values})


names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8).filter(
    lambda name: not set("<>\n'\"") & set(name) and name.strip() == name
)
keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(
    lambda name: not set("<>\n") & set(name)
)


@st.composite
def conversations(draw: Draw) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """An assistant message and the tools whose calls it makes."""
    tools, calls = [], []
    for name in draw(st.lists(names, unique=True, max_size=3)):
        defs: dict[str, Any] = {}
        parameters = {
            key: typed(draw, draw(st.integers(0, 3)), defs)
            for key in draw(st.lists(keys, unique=True, max_size=4))
        }
        properties = {key: schema for key, (schema, _) in parameters.items()}
        schema: dict[str, Any] = {"type": "object", "properties": properties, "$defs": defs}
        form = draw(st.sampled_from(("plain", "additional", "combined")))
        if form == "additional":
            more, values = typed(draw, 1, defs)
            if isinstance(more, dict):
                schema["additionalProperties"] = more
                parameters["+more"] = (more, values)
        elif form == "combined":
            schema = {"allOf": [{"properties": properties}, {"required": []}], "$defs": defs}
        tools.append({"type": "function", "function": {"name": name, "parameters": schema}})
        for _ in range(draw(st.integers(0, 2))):
            kept = draw(st.permutations(list(parameters)))
            calls.append({"name": name, "arguments": {key: draw(parameters[key][1]) for key in kept}})
    message = {
        "role": "assistant",
        "content": draw(text_without("</think>", "<think>", "<minimax:tool_call>")),
        "reasoning_content": draw(text_without("</think>", "<minimax:tool_call>", "<think>")),
    }
    if calls:
        ordered = draw(st.permutations(calls))
        message["tool_calls"] = [{"type": "function", "function": call} for call in ordered]
    return message, tools
