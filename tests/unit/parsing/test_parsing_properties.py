"""What must hold for every completion: reading undoes rendering, streams equal batches, nothing raises."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

from completions import assert_same, chunks, joined, stream
from hypothesis import given
from hypothesis import strategies as st
from strategies import PIECES, conversations, examples, garbage, json_values, sizes, text_without

from mm2c_runtime.chat import ChatTemplate, will_reason
from mm2c_runtime.parsing import MessageStream, parse_message

TEMPLATE = ChatTemplate.from_bundle(Path(__file__).parents[2] / "fixtures" / "tiny-m2")
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


@examples(2500)
@given(conversations(), sizes)
def test_reading_undoes_rendering(conversation: tuple[Any, Any], pieces: list[int]) -> None:
    check_round_trip(TEMPLATE, conversation, pieces)


def check_round_trip(template: ChatTemplate, conversation: tuple[Any, Any], pieces: list[int]) -> None:
    message, tools = conversation
    completion, start = completion_of(template, conversation)
    parsed = parse_message(completion, tools, starts_in_reasoning=start)
    assert parsed.reasoning == message["reasoning_content"]
    assert parsed.content == message["content"]
    assert parsed.incomplete is None
    expected = [call["function"] for call in message.get("tool_calls", [])]
    assert [call.name for call in parsed.tool_calls] == [call["name"] for call in expected]
    for call, wanted in zip(parsed.tool_calls, expected, strict=True):
        assert same(json.loads(call.arguments), json.loads(json.dumps(wanted["arguments"])))
    assert_same(stream(chunks(completion, pieces), tools, starts_in_reasoning=start), parsed)


def completion_of(template: ChatTemplate, conversation: tuple[Any, Any]) -> tuple[str, bool]:
    """What the model would have written to be rendered as this message, and whether it began in reasoning."""
    message, tools = conversation
    history = [{"role": "user", "content": "u"}]
    prompt = template.render(history, tools)
    whole = template.render([*history, message], tools, add_generation_prompt=False)
    if not message["reasoning_content"]:
        prompt = prompt.removesuffix("<think>\n")
    assert whole.startswith(prompt)
    return whole.removeprefix(prompt).removesuffix("[e~[\n"), will_reason(prompt)


@examples(700)
@given(conversations(), st.floats(0, 1))
def test_a_cut_completion_tells_no_call_but_whole_ones(conversation: tuple[Any, Any], share: float) -> None:
    message, tools = conversation
    calls = [call["function"] for call in message.get("tool_calls", [])]
    if not calls:
        return
    completion, start = completion_of(TEMPLATE, conversation)
    block = completion.index("<minimax:tool_call>\n<invoke") + len("<minimax:tool_call>")
    cut = completion[: block + round(share * (len(completion) - block))]
    parsed = parse_message(cut, tools, starts_in_reasoning=start, cut=True)
    assert len(parsed.tool_calls) <= cut[block:].count("</invoke>")
    if "</invoke>" not in json.dumps([call["arguments"] for call in calls]):
        assert len(parsed.tool_calls) == cut[block:].count("</invoke>")
    for call, wanted in zip(parsed.tool_calls, calls, strict=False):
        assert call.name == wanted["name"]
        assert same(json.loads(call.arguments), json.loads(json.dumps(wanted["arguments"])))
    if not parsed.tool_calls:
        assert parsed.incomplete is not None
    assert_same(stream(chunks(cut, [3]), tools, starts_in_reasoning=start, cut=True), parsed)


def same(one: Any, other: Any) -> bool:
    """Equality that tells 1 from true; 1 and 1.0 are one JSON number."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and one == other


@examples(3500)
@given(garbage, sizes, st.booleans(), st.booleans())
def test_any_split_of_any_text_reads_the_same(
    text: str, pieces: list[int], starts_in_reasoning: bool, calls: bool
) -> None:
    options = {"starts_in_reasoning": starts_in_reasoning, "calls": calls}
    message = parse_message(text, TOOLS, **options)
    for size in (pieces, [1]):
        assert_same(stream(chunks(text, size), TOOLS, **options), message)
    for call in message.tool_calls:
        assert isinstance(json.loads(call.arguments), dict)
        call.arguments.encode()


@examples(1200)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=25), sizes)
def test_any_split_of_values_reads_the_same(pieces: list[str], split: list[int]) -> None:
    opening = '<minimax:tool_call><invoke name="f"><parameter name="'
    for name in "sn":
        text = f'{opening}{name}">{"".join(pieces)}'
        message = parse_message(text, TOOLS, starts_in_reasoning=False)
        for size in (split, [1], [2]):
            assert_same(stream(chunks(text, size), TOOLS, starts_in_reasoning=False), message)


@examples(600)
@given(garbage)
def test_byte_by_byte_reads_the_same(text: str) -> None:
    data = text.encode(errors="replace")
    decode = codecs.getincrementaldecoder("utf-8")().decode
    pieces = [decode(data[at : at + 1]) for at in range(len(data))]
    assert_same(stream(pieces, TOOLS), parse_message(data.decode(), TOOLS))


@examples(1200)
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


@examples(800)
@given(json_values, garbage, st.sampled_from(["type", "enum", "anyOf", "allOf", "$ref", "const", "nullable"]))
def test_no_schema_makes_it_raise(schema: Any, text: str, keyword: str) -> None:
    for parameters in (schema, {"properties": schema}, {"properties": {"s": schema, "n": {keyword: schema}}}):
        tools = [{"function": {"name": "f", "parameters": parameters}}]
        text = f'<minimax:tool_call><invoke name="f"><parameter name="s">{text}</parameter>'
        text += '<parameter name="n">[1]</parameter></invoke>'
        assert_same(stream(chunks(text, [4]), tools), parse_message(text, tools))
