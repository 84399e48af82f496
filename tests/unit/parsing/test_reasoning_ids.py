"""Reasoning found in token ids."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models

from mm2c_runtime.errors import BundleError
from mm2c_runtime.parsing import ReasoningParser

OPEN, CLOSE, CALL = 7, 3, 5  # not the released ids: they are looked up


def tokenizer(*markers: str) -> Tokenizer:
    fill = {f"w{i}": i for i in range(10) if i not in (OPEN, CLOSE, CALL)}
    named = {"<think>": OPEN, "</think>": CLOSE, "<minimax:tool_call>": CALL}
    return Tokenizer(models.WordLevel({**fill, **{name: named[name] for name in markers}}, unk_token="w0"))


PARSER = ReasoningParser.from_tokenizer(tokenizer("<think>", "</think>", "<minimax:tool_call>"))


def test_ids_are_looked_up() -> None:
    assert ReasoningParser(OPEN, CLOSE, CALL) == PARSER
    assert ReasoningParser.from_tokenizer(tokenizer("<think>", "</think>")).tool_call_start_token_id is None
    with pytest.raises(BundleError, match="no token </think>"):
        ReasoningParser.from_tokenizer(tokenizer("<think>"))


@pytest.mark.parametrize(
    ("ids", "reasoning_now", "reasoning", "content", "still"),
    [
        ([1, 2], True, [1, 2], [], True),
        ([], True, [], [], True),
        ([1, CLOSE, 2], True, [1], [2], False),
        ([CLOSE], True, [], [], False),
        ([OPEN, 1, CLOSE, 2], True, [1], [2], False),
        ([1, CALL, 2], True, [1], [CALL, 2], False),
        ([CALL], True, [], [CALL], False),
        ([1, 2], False, [], [1, 2], False),
        ([1, CLOSE, 2], False, [], [1, CLOSE, 2], False),
        ([], False, [], [], False),
        ([1, OPEN, 2], False, [2], [1], True),
        ([1, OPEN, 2, CLOSE, 4], False, [2], [1, 4], False),
        ([1, OPEN, CALL, 4], False, [], [1, CALL, 4], False),
    ],
)
def test_the_span_of_a_chunk(
    ids: list[int], reasoning_now: bool, reasoning: list[int], content: list[int], still: bool
) -> None:
    parsed = PARSER.stream(ids, is_currently_reasoning=reasoning_now)
    assert parsed.span.extract_reasoning(ids) == reasoning
    assert parsed.span.extract_content(ids) == content
    assert parsed.is_still_reasoning is still
    if not reasoning_now and OPEN not in ids:
        assert parsed.span.reasoning == parsed.span.reasoning_with_delimiters == (0, 0)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ([1, OPEN], True),
        ([OPEN, 1, CLOSE, 2], False),
        ([OPEN, 1, CLOSE, 2, OPEN, 4], True),
        ([CALL, 1, OPEN, 4], True),
        ([OPEN, 1, CALL], True),
        ([1, 2], False),
        ([], False),
    ],
)
def test_the_last_think_marker_of_the_prompt_decides(prompt: list[int], expected: bool) -> None:
    assert PARSER.will_reason_after_prompt(prompt) is expected


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([1], False),
        ([1, CLOSE], True),
        ([1, CALL], True),
        ([CALL, 1, OPEN, 2], False),
        ([OPEN, 1, CLOSE, 2], True),
    ],
)
def test_the_end_of_reasoning(ids: list[int], expected: bool) -> None:
    assert PARSER.is_reasoning_end(ids) is expected
    assert PARSER.reasoning_end_token_id == CLOSE
