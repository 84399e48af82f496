"""TensorRT-LLM: TestMiniMaxM2ToolParser in tests/unittest/llmapi/apps/test_tool_parsers.py."""

from __future__ import annotations

from completions import block, tool
from peer_cases.case import STRING, VERBATIM, Case, one, streamed

OPEN, CLOSE = "<minimax:tool_call>", "</minimax:tool_call>"
TOOLS = [tool("depth", {"where": STRING, "unit": STRING}), tool("gulls", {"text": STRING}), tool("noon")]
TYPED = [tool("box", {name: {"type": name} for name in ("string", "integer", "number", "boolean", "object")})]
FJORD = '<invoke name="depth"><parameter name="where">fjord</parameter></invoke>'
FJORD_CALL = ("depth", {"where": "fjord"})

CASES = [
    Case(
        "text and a call",
        "test_detect_and_parse_single_tool, test_streaming_preserves_prefix_in_same_chunk",
        f"I sound it.{OPEN}{FJORD}{CLOSE}",
        [FJORD_CALL],
        "I sound it.",
        tools=TOOLS,
    ),
    Case(
        "two tools",
        "test_detect_and_parse_multiple_tools",
        f'{OPEN}{FJORD}<invoke name="gulls"><parameter name="text">how many</parameter></invoke>{CLOSE}',
        [FJORD_CALL, ("gulls", {"text": "how many"})],
        tools=TOOLS,
    ),
    streamed(
        "text alone",
        "test_detect_and_parse_no_tool_call, test_parse_streaming_increment_normal_text",
        ["Ahoy, what can I do?"],
        content="Ahoy, what can I do?",
    ),
    Case(
        "interleaved thought",
        "test_detect_and_parse_with_thinking",
        f"Let me see...\n{OPEN}{FJORD}{CLOSE}",
        [FJORD_CALL],
        "Let me see...",
        tools=TOOLS,
        differs=VERBATIM,
    ),
    Case(
        "two parameters",
        "test_detect_and_parse_multiple_params",
        OPEN
        + '<invoke name="depth"><parameter name="where">fjord</parameter><parameter name="unit">m</parameter></invoke>'
        + CLOSE,
        one("depth", where="fjord", unit="m"),
        tools=TOOLS,
    ),
    Case(
        "no parameters",
        "test_detect_and_parse_no_params",
        f'{OPEN}<invoke name="noon"></invoke>{CLOSE}',
        one("noon"),
        tools=TOOLS,
    ),
    streamed(
        "a partial marker",
        "test_parse_streaming_increment_partial_bot_token",
        ["<minimax:tool_cal"],
        content="<minimax:tool_cal",
        differs="held back while it streams, as there; at the end of the text it is text",
    ),
    *(
        Case(
            f"a string that is {value}",
            "test_parse_param_value_string_not_coerced",
            f'{OPEN}<invoke name="box"><parameter name="string">{value}</parameter></invoke>{CLOSE}',
            one("box", string=value),
            tools=TYPED,
        )
        for value in ("42", "true", "null", '{"k": 1}', "[1,2]")
    ),
    Case(
        "the other types",
        "test_parse_param_value_string_not_coerced",
        block(
            '<invoke name="box"><parameter name="integer">42</parameter><parameter name="number">3.14</parameter>'
            '<parameter name="boolean">true</parameter><parameter name="object">{"k": 1}</parameter></invoke>'
        ),
        one("box", integer=42, number=3.14, boolean=True, object={"k": 1}),
        tools=TYPED,
    ),
    Case(
        "text on both sides",
        "test_detect_and_parse_preserves_suffix",
        f"bow text{OPEN}{FJORD}{CLOSE} stern text",
        [FJORD_CALL],
        "bow text stern text",
        tools=TOOLS,
    ),
]
