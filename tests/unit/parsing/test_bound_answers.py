"""Answers bound by a regular expression or a user's grammar: no markup of calls is read in them."""

from __future__ import annotations

import pytest
from completions import assert_same, block, chunks, invoke, joined, stream
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from mm2c_runtime.parsing import Message, MessageStream, parse_message

MARKUP = "<think></think>a" + block(invoke("f", s="x")) + "</think><think><minimax:tool_call></invoke>"
MARKERS = ("<think>", "</think>", "<minimax:tool_call>", "</minimax:tool_call>", "</invoke>", "<invoke")
texts = st.lists(st.one_of(st.sampled_from((*MARKERS, "\n", "<", "</th", "a")), st.text(max_size=3))).map(
    "".join
)


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("why\n</think>\n\n" + MARKUP, "why", MARKUP),
        ("why</think>" + MARKUP, "why", MARKUP),
        ("<think>\nwhy\n</think>\n\n\n\nso\n", "why", "\n\nso\n"),
        ("I could <minimax:tool_call> now\n</think>\n\nso", "I could <minimax:tool_call> now", "so"),
        ("why" + block(invoke("f")), "why" + block(invoke("f")), ""),
        ("why\n</thi", "why\n</thi", ""),
        ("</think>", "", ""),
        ("", "", ""),
    ],
)
def test_only_the_end_of_thinking_ends_reasoning(text: str, reasoning: str, content: str) -> None:
    message = parse_message(text, calls=False)
    assert message == Message(reasoning, content)
    for size in (1, 3, len(text) + 1):
        assert_same(stream(chunks(text, [size]), calls=False), message)


@given(texts, st.lists(st.integers(1, 5), min_size=1, max_size=3))
@examples(300)
def test_without_reasoning_every_character_is_content_at_once(text: str, sizes: list[int]) -> None:
    assert parse_message(text, starts_in_reasoning=False, calls=False) == Message(content=text)
    parser = MessageStream(starts_in_reasoning=False, calls=False)
    for piece in chunks(text, sizes):
        assert joined(parser.feed(piece), "content") == piece
    assert parser.finish() == []


@given(texts, texts, st.lists(st.integers(1, 5), min_size=1, max_size=3))
@examples(300)
def test_after_reasoning_every_character_is_content(reasoning: str, answer: str, sizes: list[int]) -> None:
    reasoning = reasoning.replace("</think>", "").replace("<think>", "")
    text = f"<think>\n{reasoning}\n</think>\n\n{answer}"
    if "</think>" not in reasoning:
        message = parse_message(text, calls=False)
        assert message == Message(reasoning, answer)
        assert_same(stream(chunks(text, sizes), calls=False), message)
