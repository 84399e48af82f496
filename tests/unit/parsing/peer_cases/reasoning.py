"""Reasoning, from the published tests of several peers. Files, shortened in ``test``:

V: vLLM tests/reasoning/test_minimax_m2_reasoning_parser.py; A: vLLM
tests/reasoning/test_minimax_m2_append_reasoning_parser.py; E: vLLM tests/parser/engine/test_minimax_m2.py; D: NVIDIA
Dynamo lib/parsers/src/reasoning/minimax_append_think_parser.rs; F: NVIDIA frontend-crates, reasoning parsers; S: SGLang
TestMiniMaxAppendThinkDetector; G: smg crates/reasoning_parser/src/parsers/minimax.rs; T: TensorRT-LLM
TestInterleavedThinkingReasoningParsers.
"""

from __future__ import annotations

from peer_cases.case import Case, one, streamed

APPENDED = (
    "the peer's append-think parser gives reasoning as content behind a <think>; ours always parts the two"
)
NEWLINES = "</think> owns the newlines that the template writes around it; the peer leaves them"
CALL = '<minimax:tool_call><invoke name="look"><parameter name="where">east</parameter></invoke></minimax:tool_call>'


def thought(id: str, test: str, text: str, reasoning: str, content: str, **fields: object) -> Case:
    return Case(id, test, text, [], content, reasoning, starts_in_reasoning=True, **fields)  # type: ignore[arg-type]


CASES = [
    thought(
        "both",
        "V SIMPLE_REASONING; E test_extract_reasoning_without_start_token; G test_minimax_always_in_reasoning; "
        "D test_detect_and_parse_with_end_token; T test_minimax_m2_parser_handles_think_tags",
        "I weigh it up</think>It is ten",
        "I weigh it up",
        "It is ten",
    ),
    thought("reasoning alone", "V COMPLETE_REASONING", "I weigh it up</think>", "I weigh it up", ""),
    thought(
        "no end yet",
        "V NO_END_TOKEN; E test_extract_reasoning_without_end_token; G test_minimax_without_end_token; "
        "D test_detect_and_parse_no_end_token",
        "I am still at it",
        "I am still at it",
        "",
    ),
    thought("several lines", "V MULTIPLE_LINES", "One\nTwo</think>Three\nFour", "One\nTwo", "Three\nFour"),
    thought(
        "the end alone",
        "V SHORTEST_REASONING_NO_STREAMING, SHORTEST_REASONING_STREAMING",
        "</think>It is ten",
        "",
        "It is ten",
    ),
    thought("nothing", "V EMPTY, EMPTY_STREAMING", "", "", ""),
    thought(
        "special characters",
        "V SPECIAL_CHARS",
        "Hmm... 3*4=12, no?</think>Yes, 3*4=12.",
        "Hmm... 3*4=12, no?",
        "Yes, 3*4=12.",
    ),
    thought(
        "code",
        "V CODE_IN_REASONING",
        "```c\nputs('ahoy');\n```</think>That is it.",
        "```c\nputs('ahoy');\n```",
        "That is it.",
    ),
    thought(
        "a second end",
        "V DOUBLE_END_TOKEN, DOUBLE_END_TOKEN_STREAMING",
        "why</think>this </think>and that",
        "why",
        "this and that",
    ),
    thought(
        "appended: both",
        "A SIMPLE_OUTPUT, MULTIPLE_LINES, SPECIAL_CHARS, CODE_OUTPUT",
        "I weigh 1+1</think>Two!",
        "I weigh 1+1",
        "Two!",
        differs=APPENDED,
    ),
    thought(
        "appended: no end",
        "A NO_END_TOKEN; S test_detect_and_parse_prepends_think",
        "I am still at it",
        "I am still at it",
        "",
        differs=APPENDED,
    ),
    thought(
        "appended: the end alone", "A ONLY_END_TOKEN", "</think>It is ten", "", "It is ten", differs=APPENDED
    ),
    thought("appended: nothing", "A EMPTY, EMPTY_STREAMING", "", "", "", differs=APPENDED),
    streamed(
        "appended: in pieces",
        "S test_streaming_first_chunk_prepends_think, test_streaming_second_chunk_no_prepend",
        ["First", "Second"],
        reasoning="FirstSecond",
        starts_in_reasoning=True,
        differs=APPENDED,
    ),
    streamed(
        "streamed",
        "D test_streaming_basic_flow; G test_minimax_streaming",
        ["I ought to ", "ask the keeper", "</think>The lamp is lit."],
        [],
        "The lamp is lit.",
        "I ought to ask the keeper",
        starts_in_reasoning=True,
    ),
    streamed(
        "the end in two pieces",
        "D test_streaming_end_token_split_across_chunks",
        ["thinking", "</thi", "nk>the rest"],
        [],
        "the rest",
        "thinking",
        starts_in_reasoning=True,
    ),
    streamed(
        "only reasoning in pieces",
        "D test_streaming_only_reasoning_no_end",
        ["still thinking", " and thinking"],
        reasoning="still thinking and thinking",
        starts_in_reasoning=True,
    ),
    streamed(
        "a call after reasoning",
        "D test_streaming_with_tool_call_after_reasoning; "
        "T test_interleaved_thinking_minimax_with_tool_call; F test_minimax_m2_force_reasoning_and_tool_transition",
        ["I ask a tool", "</think>" + CALL],
        one("look", where="east"),
        "",
        "I ask a tool",
        starts_in_reasoning=True,
    ),
    streamed(
        "a bracket in a chunk of its own",
        "D test_streaming_tool_call_angle_bracket_split_tokens",
        ["I look out", "</think>", "<minimax:tool_call>", "\n", "<", 'invoke name="look">', "</invoke>"],
        one("look"),
        "",
        "I look out",
        starts_in_reasoning=True,
    ),
    Case(
        "a call ends reasoning",
        "F test_minimax_m2_tool_start_exits_force_reasoning",
        "I look out." + CALL,
        one("look", where="east"),
        "",
        "I look out.",
        starts_in_reasoning=True,
    ),
    thought(
        "the template's layout",
        "V (its rules on this text)",
        "why\n</think>\n\nso",
        "why",
        "so",
        differs=NEWLINES,
    ),
]
