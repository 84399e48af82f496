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


# MAX's published cases, its tests named test_minimax_m2_…
@pytest.mark.parametrize(
    ("ids", "reasoning", "content", "still"),
    [
        pytest.param([1, 2, CLOSE, 4], [1, 2], [4], False, id="stream_implicit_start"),
        pytest.param([OPEN, 1, CALL, 8, 9], [1], [CALL, 8, 9], False, id="stream_tool_call_ends_reasoning"),
        pytest.param([1, 2, 4], [1, 2, 4], [], True, id="stream_no_end_still_reasoning"),
        # differs: a chunk that is reasoning from its first token has no content before an opener
        pytest.param(
            [0, OPEN, 1, 2, CLOSE, 4], [0, OPEN, 1, 2], [4], False, id="stream_finds_think_boundaries"
        ),
    ],
)
def test_the_published_cases_of_max(
    ids: list[int], reasoning: list[int], content: list[int], still: bool
) -> None:
    parsed = PARSER.stream(ids)
    assert parsed.span.extract_reasoning(ids) == reasoning
    assert parsed.span.extract_content(ids) == content
    assert parsed.is_still_reasoning is still


@pytest.mark.parametrize(
    ("ids", "reasoning", "content"),
    [
        ([1, 2, CLOSE, 4, 6], [1, 2], [4, 6]),
        ([1, 2, CALL, 4], [1, 2], [CALL, 4]),
        ([OPEN, 1, CLOSE], [1], []),
    ],
)
def test_every_split_gives_the_same_reasoning(
    ids: list[int], reasoning: list[int], content: list[int]
) -> None:
    for size in range(1, len(ids) + 1):
        still, thought, said = True, list[int](), list[int]()
        for at in range(0, len(ids), size):
            parsed = PARSER.stream(ids[at : at + size], still)
            still = parsed.is_still_reasoning
            thought += parsed.span.extract_reasoning(ids[at : at + size])
            said += parsed.span.extract_content(ids[at : at + size])
        assert (thought, said, still) == (reasoning, content, False)
