"""What must hold for every completion: reading undoes rendering, streams equal batches, nothing raises."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from completions import assert_same, chunks, joined, stream
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mm2c_runtime.chat import ChatTemplate, will_reason
from mm2c_runtime.parsing import MessageStream, parse_message

TEMPLATE = ChatTemplate.from_bundle(Path(__file__).parents[2] / "fixtures" / "tiny-m2")
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
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "f",
            "parameters": {
                "properties": {
                    "s": {"type": "string"},
                    "n": {"type": ["integer", "null"]},
                    "o": {"type": "object"},
                }
            },
        },
    }
]
slow_start = settings(deadline=None, suppress_health_check=list(HealthCheck))
garbage = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)
sizes = st.lists(st.integers(1, 9), min_size=1, max_size=5)


def text_without(*forbidden: str) -> st.SearchStrategy[str]:
    """Hostile text that holds none of these markers, nor a beginning that what follows could complete."""
    pieces = [piece for piece in PIECES if piece not in forbidden]
    free = st.one_of(st.sampled_from(pieces), st.text(max_size=5))
    return st.lists(free, max_size=8).map("".join).filter(lambda text: not any(m in text for m in forbidden))


# A value's schema, and the values that it admits and that the template writes in only one reading.
Typed = tuple[dict[str, Any], st.SearchStrategy[Any]]
string_values = text_without("</parameter>")
integers = st.integers(-(10**30), 10**30)
numbers = st.one_of(integers, st.floats(allow_nan=False, allow_infinity=False))


def is_plain_text(text: str) -> bool:
    """Not JSON: neither NaN nor Infinity is."""
    try:
        json.loads(text, parse_constant=lambda name: json.loads(""))
    except ValueError:
        return True
    return False


json_values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, string_values),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(string_values, inner, max_size=3)),
    max_leaves=6,
)
objects = st.dictionaries(string_values, json_values, max_size=3)
text_or_json = json_values.filter(lambda value: not isinstance(value, str) or is_plain_text(value))
SCHEMAS: list[Typed] = [
    ({"type": "string"}, string_values),
    ({"$ref": "#/$defs/text"}, string_values),
    ({"enum": ["a", " b\n", "</invoke>", "5"]}, st.sampled_from(["a", " b\n", "</invoke>", "5"])),
    ({"allOf": [{"type": ["string", "null"]}, {"type": ["string", "integer"]}]}, string_values),
    ({"type": "integer"}, integers),
    ({"$ref": "#/$defs/count"}, integers),
    ({"type": "number"}, numbers),
    ({"type": "boolean"}, st.booleans()),
    ({"type": "null"}, st.none()),
    ({"type": "array", "items": {"type": "string"}}, st.lists(string_values, max_size=3)),
    ({"type": "object"}, objects),
    ({"const": [1, "a"]}, st.just([1, "a"])),
    ({"enum": [1, "1", None, "x"]}, st.sampled_from([1, None, "x"])),
    ({"type": "string", "nullable": True}, st.one_of(st.none(), string_values.filter(is_plain_text))),
    (
        {"anyOf": [{"type": "string"}, {"type": "null"}]},
        st.one_of(st.none(), string_values.filter(is_plain_text)),
    ),
    ({"oneOf": [{"$ref": "#/$defs/count"}, {"$ref": "#/$defs/tree"}]}, st.one_of(integers, objects)),
    ({"type": ["string", "array"]}, st.one_of(st.lists(integers), string_values.filter(is_plain_text))),
    ({}, text_or_json),
]
DEFS = {
    "text": {"type": "string", "minLength": 0},
    "count": {"type": "integer"},
    "tree": {"type": "object", "properties": {"left": {"$ref": "#/$defs/tree"}}},
}
names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8).filter(
    lambda name: not set("<>\n'\"") & set(name) and name.strip() == name
)
keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(
    lambda name: not set("<>\n") & set(name)
)


@st.composite
def conversations(
    draw: Callable[[st.SearchStrategy[Any]], Any],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """An assistant message and the tools whose calls it makes."""
    tools, calls = [], []
    for name in draw(st.lists(names, unique=True, max_size=3)):
        parameters = draw(st.dictionaries(keys, st.sampled_from(SCHEMAS), max_size=4))
        properties = {key: schema for key, (schema, _) in parameters.items()}
        schema = {"type": "object", "properties": properties, "$defs": DEFS}
        if draw(st.booleans()):
            schema["additionalProperties"] = {"type": "string"}
            parameters["+more"] = ({}, string_values)
        tools.append({"type": "function", "function": {"name": name, "parameters": schema}})
        for _ in range(draw(st.integers(0, 2))):
            arguments = {key: draw(values) for key, (_, values) in parameters.items()}
            calls.append({"type": "function", "function": {"name": name, "arguments": arguments}})
    message = {
        "role": "assistant",
        "content": draw(text_without("</think>", "<think>", "<minimax:tool_call>")),
        "reasoning_content": draw(text_without("</think>", "<minimax:tool_call>", "<think>")),
    }
    if calls:
        message["tool_calls"] = draw(st.permutations(calls))
    return message, tools


@settings(slow_start, max_examples=700)
@given(conversations(), sizes)
def test_reading_undoes_rendering(conversation: tuple[Any, Any], pieces: list[int]) -> None:
    message, tools = conversation
    history = [{"role": "user", "content": "u"}]
    prompt = TEMPLATE.render(history, tools)
    whole = TEMPLATE.render([*history, message], tools, add_generation_prompt=False)
    if not message["reasoning_content"]:
        prompt = prompt.removesuffix("<think>\n")
    assert whole.startswith(prompt)
    completion = whole.removeprefix(prompt).removesuffix("[e~[\n")
    parsed = parse_message(completion, tools, starts_in_reasoning=will_reason(prompt))
    assert parsed.reasoning == message["reasoning_content"]
    assert parsed.content == message["content"]
    assert parsed.incomplete is None
    expected = [call["function"] for call in message.get("tool_calls", [])]
    assert [call.name for call in parsed.tool_calls] == [call["name"] for call in expected]
    for call, wanted in zip(parsed.tool_calls, expected, strict=True):
        assert json.loads(call.arguments) == json.loads(json.dumps(wanted["arguments"]))
    assert_same(stream(chunks(completion, pieces), tools, starts_in_reasoning=will_reason(prompt)), parsed)


@settings(slow_start, max_examples=1500)
@given(garbage, sizes, st.booleans())
def test_any_split_of_any_text_reads_the_same(
    text: str, pieces: list[int], starts_in_reasoning: bool
) -> None:
    message = parse_message(text, TOOLS, starts_in_reasoning=starts_in_reasoning)
    for size in (pieces, [1]):
        split = stream(chunks(text, size), TOOLS, starts_in_reasoning=starts_in_reasoning)
        assert_same(split, message)
    for call in message.tool_calls:
        assert isinstance(json.loads(call.arguments), dict)
        call.arguments.encode()


@settings(slow_start, max_examples=700)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=25), sizes)
def test_any_split_of_values_reads_the_same(pieces: list[str], split: list[int]) -> None:
    opening = '<minimax:tool_call><invoke name="f"><parameter name="'
    for name in "sn":
        text = f'{opening}{name}">{"".join(pieces)}'
        message = parse_message(text, TOOLS, starts_in_reasoning=False)
        for size in (split, [1], [2]):
            assert_same(stream(chunks(text, size), TOOLS, starts_in_reasoning=False), message)


@settings(slow_start, max_examples=500)
@given(text_without("<think>", "</think>", "<minimax:tool_call>", "</parameter>", "</invoke>"), sizes)
def test_only_the_beginning_of_a_marker_is_held_back(text: str, pieces: list[int]) -> None:
    endings = {
        "content": ("", ("</think>", "<think>", "\n<minimax:tool_call>", "<minimax:tool_call>")),
        "reasoning": ("x", ("\n</think>", "</think>", "\n<minimax:tool_call>", "<minimax:tool_call>")),
        "arguments": (
            '<minimax:tool_call><invoke name="f"><parameter name="s">',
            ("</parameter>", "</invoke>"),
        ),
    }
    for kind, (opening, markers) in endings.items():
        parser = MessageStream(TOOLS, starts_in_reasoning=kind == "reasoning")
        parser.feed(opening)
        fed = said = ""
        for piece in chunks(text, pieces):
            fed += piece
            said += joined(parser.feed(piece), kind)
            written = fed if kind != "arguments" else json.dumps(fed, ensure_ascii=False)[1:-1]
            if not any("\ud800" <= character <= "\udfff" for character in fed):
                assert written.startswith(said)
                held = written[len(said) :].replace("\\n", "\n")
                assert not held or any(marker.startswith(held) for marker in markers)


@settings(slow_start, max_examples=300)
@given(json_values, garbage, st.sampled_from(["type", "enum", "anyOf", "allOf", "$ref", "const", "nullable"]))
def test_no_schema_makes_it_raise(schema: Any, text: str, keyword: str) -> None:
    for parameters in (schema, {"properties": schema}, {"properties": {"s": schema, "n": {keyword: schema}}}):
        tools = [{"function": {"name": "f", "parameters": parameters}}]
        text = f'<minimax:tool_call><invoke name="f"><parameter name="s">{text}</parameter>'
        text += '<parameter name="n">[1]</parameter></invoke>'
        assert_same(stream(chunks(text, [4]), tools), parse_message(text, tools))
